"""Sentence splitting for IFEval without a download.

IFEval counts sentences with NLTK's Punkt, whose English parameters are a download. Where they are not
installed, a Punkt tokenizer without learnt abbreviations takes their place; notes.json says which was used.
"""

import atexit
import tempfile
from pathlib import Path

BUILT_IN = "Punkt without learnt abbreviations (NLTK's punkt_tab is not installed)"
INSTALLED = "NLTK's punkt_tab"


def provide_punkt() -> str:
    """Make punkt available to NLTK, and say which one it is."""
    import nltk
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    def found(name: str) -> bool:
        try:
            return bool(nltk.data.find(f"tokenizers/{name}"))
        except LookupError:
            return False

    if found("punkt_tab/english") and found("punkt"):
        return BUILT_IN if any(str(p).endswith("scalpel_nltk") for p in nltk.data.path) else INSTALLED
    installed = found("punkt_tab/english")
    temporary = tempfile.TemporaryDirectory(prefix="scalpel_")
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name) / "scalpel_nltk"
    # LightEval's IFEval looks for the older "punkt" too and would download it; nothing reads its content.
    (folder / "tokenizers" / "punkt").mkdir(parents=True)
    if not installed:
        target = folder / "tokenizers" / "punkt_tab" / "english"
        target.mkdir(parents=True)
        save_punkt_params(PunktParameters(), str(target))
    nltk.data.path.append(str(folder))
    return INSTALLED if installed else BUILT_IN
