"""All cases, by the file that makes them."""

import archives
import configurations
import drawings
import folders
import networks
import pickles

FILES = (pickles, archives, configurations, networks, folders, drawings)
CASES = [case for file in FILES for case in file.CASES]
