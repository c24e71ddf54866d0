"""Lets OpenAI's own client use the server, and writes down what it got.

    python trainer/train_full_sft.py --from_weight pretrain
    python proofs/openai_transcript.py --out docs/serving_transcript.md

Each request of proofs/openai_client/examples.py stands in the page with its output. Exits with status 1 if one fails.
"""

import argparse
import inspect
import io
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import openai
from load.server_process import ServerProcess
from openai_client import examples

OPENING = """# OpenAI's client and this server

`python proofs/openai_transcript.py` wrote this page with version {version} of the `openai` package: it started
`scripts/serve_openai_api.py` with the bundled model, fine-tuned as the [README](../README.md) says, and made these
requests. The model has 4 million parameters; what matters here is the form of its answers.

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8998/v1", api_key="none")
```
"""


def transcript(client: openai.OpenAI) -> tuple[str, int]:
    """Returns the page, and how many examples failed."""
    parts, failed = [OPENING.format(version=openai.__version__)], 0
    for example in examples.EXAMPLES:
        output = io.StringIO()
        try:
            with redirect_stdout(output):
                example(client)
        except Exception:
            failed += 1
            traceback.print_exc()
        parts.append(f"## {inspect.getdoc(example)}\n\n```python\n{code_of(example)}\n```\n\n"
                     f"```text\n{output.getvalue().rstrip()}\n```\n")
        print(f"{example.__name__}\n{textwrap.indent(output.getvalue(), '    ')}", flush=True)
    return "\n".join(parts), failed


def code_of(example: Callable[[openai.OpenAI], None]) -> str:
    """Returns the code of an example without its head, and before it the objects of its module that it needs."""
    names = [name for name in ("QUESTION", "City", "WEATHER") if name in example.__code__.co_names]
    source = inspect.getsource(examples)
    needed = [definition(source, name) for name in names if name != "QUESTION" or example is examples.chat]
    body = textwrap.dedent(inspect.getsource(example).split('"""\n', 1)[1]).rstrip()
    return "\n\n".join([*needed, body])


def definition(source: str, name: str) -> str:
    """Returns the lines of a module's source that define a name, without a class's docstring."""
    lines = source.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith((f"{name} = ", f"class {name}(")))
    end = next((number for number in range(start + 1, len(lines)) if lines[number] and lines[number][0] not in " }"),
               len(lines))
    return "\n".join(line for line in lines[start:end] if '"""' not in line).replace(":\n\n", ":\n").rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_dir", default="out", help="folder of the weights full_sft")
    parser.add_argument("--out", type=Path, help="Markdown file for the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(["--weight", "full_sft", "--save_dir", arguments.save_dir], Path(folder) / "server.log")
        try:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
                page, failed = transcript(client)
        finally:
            server.terminate()
            server.wait()
        if problem := server.output_problem():
            print(f"the server printed {problem}", file=sys.stderr)
            failed += 1
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
