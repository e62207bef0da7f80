"""Upload a finished run's checkpoint with its model card: python -m scripts.push RUN OWNER/NAME [--step 100] [--public]

To a model repository of the hub, made if there is none, private unless --public is given. Needs the network and a token
(HF_TOKEN, or `hf auth login`). Nothing else of Scalpel uploads anything.
"""

import sys

from scalpel.card import card
from scalpel.program import end_with
from scalpel.push import push
from scripts.card import checkpoint, options


def main() -> int:
    parser = options("push", __doc__.splitlines()[0])
    parser.add_argument("repo", help="of the hub: <owner>/<name>")
    parser.add_argument("--public", action="store_true", help="for all to see, where the repository is made")
    asked = parser.parse_args()
    what = checkpoint(asked)
    made = what.run.checkpoints
    message = f"{made.name}-{made.digest}, step {what.checkpoint.step}"
    address = push(what.checkpoint.path, card(what), asked.repo, message, private=not asked.public)
    print(f"{message}: {address}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    end_with(main)
