"""Does the server answer as its OpenAPI description says? schemathesis makes the requests.

    python proofs/serve_description.py --count 2000 --json proofs/results/serve_description.json

For each address it makes requests that fit the description, and requests that do not. No answer may be a failure of
the server, or have a status, header or body that is not described; what does not fit must be refused, in OpenAI's form
and in one line. Exits with status 1 at the first answer that is wrong, and shows its request.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from hostile.small_models import small_weights
from load.described import attempt, operations

from minimind_sft.serving.application import make_application
from minimind_sft.serving.models import load_models
from minimind_sft.settings.chat import ChatRuntimeSettings, WeightSettings
from minimind_sft.settings.serve import OfferedSettings, ServeSettings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="requests of each kind and address (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ServeSettings(weights=WeightSettings(weight=str(small_weights(Path(folder)))),
                                 offered=OfferedSettings(served_name="mini"),
                                 runtime=ChatRuntimeSettings(device="cpu"))
        app = make_application(load_models(settings, print), settings.listening, settings.limits)
    rows = []
    for operation, mode in operations(app):
        statuses = attempt(operation, mode, "mini", arguments.count)
        rows.append({"address": f"{operation.method.upper()} {operation.path}", "requests": mode.value,
                     "statuses": {str(status): count for status, count in sorted(statuses.items())}})
        print(*rows[-1].values(), sep="  ", flush=True)
    if arguments.json:
        record = {"command": " ".join(["python", "proofs/serve_description.py", *sys.argv[1:]]), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
