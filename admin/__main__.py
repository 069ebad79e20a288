"""`python -m admin` is `cenote`, for checkouts that are not installed."""

import sys

from admin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
