"""`python -m llmws` is `llmws`."""

import sys

from llmws.cli import main

sys.exit(main())
