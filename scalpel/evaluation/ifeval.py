"""LightEval's IFEval instructions, with nothing random in them, and the check of a question's before it is asked."""

from __future__ import annotations

import functools
from typing import Any

from scalpel.config.load import nearest
from scalpel.errors import UserError


@functools.cache
def instructions() -> dict[str, type]:
    """LightEval's registry. A letter of letter_frequency that is none ("#") is counted as it is: LightEval takes a
    random one instead."""
    from scalpel.evaluation.sentences import provide_punkt

    provide_punkt()
    import langdetect
    from lighteval.tasks.tasks.ifeval.instructions import LetterFrequencyChecker
    from lighteval.tasks.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    langdetect.DetectorFactory.seed = 0  # it guesses with random numbers of its own

    class LetterFrequency(LetterFrequencyChecker):
        def build_description(self, *, letter: Any = None, **others: Any) -> str:
            super().build_description(letter=letter, **others)
            self._letter = letter.lower()
            return self._description_pattern.format(
                letter=self._letter, let_relation=self._comparison_relation, let_frequency=self._frequency
            )

    INSTRUCTION_DICT["keywords:letter_frequency"] = LetterFrequency
    return INSTRUCTION_DICT


def check(names: list, arguments: list, where: str) -> None:
    """UserError when an instruction is unknown, lacks an argument (LightEval would draw it) or cannot be followed."""
    known = instructions()
    if len(arguments) != len(names):
        raise UserError(f"{where}: {len(names)} instructions but {len(arguments)} sets of arguments.")
    for name, given in zip(names, arguments, strict=True):
        if name not in known:
            raise UserError(f"{where}: instruction_id_list names {name!r}{nearest(str(name), tuple(known))}.")
        instruction = known[name](name)
        wanted = set(instruction.get_instruction_args_keys())
        there = {key: value for key, value in given.items() if value} if isinstance(given, dict) else {}
        if set(there) != wanted:
            raise UserError(
                f"{where}: the arguments of {name} are {', '.join(sorted(there)) or 'none'}; "
                f"it needs {', '.join(sorted(wanted)) or 'none'}, none of them empty or 0."
            )
        try:
            instruction.build_description(**there)
            instruction.check_following("A text, to try it with.")
        except Exception as error:  # LightEval's code raises what its arguments make it
            raise UserError(f"{where}: the arguments of {name} do not work ({error}); correct them.") from None
