"""All cases, by the file that makes them."""

import archives
import configurations
import drawings
import folders
import networks
import pickles

CASES = [
    *pickles.CASES,
    *archives.CASES,
    *configurations.CASES,
    *networks.CASES,
    *folders.CASES,
    *drawings.CASES,
]
