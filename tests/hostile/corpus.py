"""All cases, by the file that makes them."""

import archives
import configurations
import drawings
import networks
import pickles

CASES = [*pickles.CASES, *archives.CASES, *configurations.CASES, *networks.CASES, *drawings.CASES]
