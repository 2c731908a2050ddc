"""``python -m graftline``: the command ``graftline``, for whoever lacks it on the path."""

import sys

from graftline.pipeline.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
