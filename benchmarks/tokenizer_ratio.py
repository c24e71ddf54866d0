"""Compares how many tokens two tokenizers need for the same files.

    python benchmarks/tokenizer_ratio.py --peer minimind_tokenizer/ alpaca_zh_10k.json wiki_demo.txt

Reads what trainer/train_tokenizer.py reads (docs/data.md). Prints a Markdown table.
"""

import argparse
from pathlib import Path

from minimind_sft.data.reading import read_texts
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError, run_program
from minimind_sft.paths import in_repository


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--tokenizer", default=in_repository("model"), help="tokenizer folder (default: model)")
    parser.add_argument("--peer", required=True, help="tokenizer folder to compare with")
    arguments = parser.parse_args()
    ours, peer = Tokenizer.from_folder(arguments.tokenizer), Tokenizer.from_folder(arguments.peer)
    print("| text | tokens | peer's tokens | ratio |\n|---|---|---|---|")
    for file in find_files(arguments.files):
        texts = list(read_texts(file))
        if not any(texts):
            raise UserError(f"{file}: expected text, found none")
        needed, peers = (sum(len(tokenizer.encode_ordinary(text)) for text in texts) for tokenizer in (ours, peer))
        print(f"| `{file.name}` | {needed:,} | {peers:,} | {needed / peers:.2f} |")


if __name__ == "__main__":
    run_program(main)
