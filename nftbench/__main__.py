"""`python -m nftbench` is `nftbench`."""

import sys

from nftbench.cli import main

if __name__ == "__main__":
    sys.exit(main())
