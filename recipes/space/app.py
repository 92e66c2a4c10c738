"""The search page as a Space of the Hub; variables of the Space name the encoders and the LLM."""

import os
from pathlib import Path

from nlt_trainer.scripts import app

VARIABLES = ("ENCODER", "AGAINST", "LLM", "DOCUMENT_PREFIX", "QUERY_PREFIX", "TITLE")

if __name__ == "__main__":
    flags = [word for name in VARIABLES if name in os.environ for word in (f"--{name.lower()}", os.environ[name])]
    corpus = str(Path(__file__).parent / "collection")
    # A Space reaches its program from outside the container that it runs in.
    app.main([*flags, "--corpus", corpus, "--host", "0.0.0.0", "--port", "7860"])
