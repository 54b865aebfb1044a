"""The cache of unpacked bundles: private, checked at every load, never trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.bundle.pack import Bundle
from hydistill_edge.device import load
from hydistill_edge.device.cache import default_cache, private_folder, unpacked
from hydistill_edge.errors import UsageError


def folder_of(bundle: Path, cache: Path) -> Path:
    with Bundle(bundle) as opened:
        return cache / opened.digest()


def test_bundle_is_unpacked_once_when_it_is_loaded_twice(
    bundle: Path, runners: list[Any], cache: Path
) -> None:
    with load(bundle):
        first = (folder_of(bundle, cache) / "model" / "model.onnx").stat().st_ino
    with load(bundle):
        second = (folder_of(bundle, cache) / "model" / "model.onnx").stat().st_ino

    assert first == second
    assert [path.name for path in cache.iterdir()] == [folder_of(bundle, cache).name]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: model.write_bytes(b"evil!!!"),
        lambda model: model.unlink(),
        lambda model: model.with_name("external.bin").write_bytes(b""),
        lambda model: model.with_name("link.bin").symlink_to("/etc/hostname"),
    ],
    ids=["altered", "missing", "extra file", "link"],
)
def test_bundle_is_unpacked_again_when_the_cache_was_touched(
    bundle: Path, runners: list[Any], cache: Path, damage: Callable[[Path], object]
) -> None:
    with load(bundle):
        pass
    model = folder_of(bundle, cache) / "model" / "model.onnx"
    damage(model)

    with load(bundle):
        assert model.read_bytes() == b"weights"
        assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    assert [path.name for path in cache.iterdir()] == [folder_of(bundle, cache).name]


def test_engine_is_kept_when_the_runtime_built_one_beside_the_model(
    bundle: Path, runners: list[Any], cache: Path
) -> None:
    with load(bundle):
        plan = runners[0].file.with_name("model.1234.plan")
        plan.write_bytes(b"built here")
        plan.with_name("model.1234.plan.seal").write_bytes(b"sealed here")

    with load(bundle):
        assert plan.read_bytes() == b"built here"


def test_other_process_wins_when_both_unpack_at_once(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Bundle.unpack

    def slower(self: Bundle, out: Path) -> None:
        original(self, out)  # the other process
        original(self, out)

    monkeypatch.setattr(Bundle, "unpack", slower)

    with Bundle(bundle) as opened, unpacked(opened, cache) as folder:
        assert (folder / "manifest.json").exists()


def test_leftovers_of_a_power_cut_are_removed_when_they_are_old(
    bundle: Path, runners: list[Any], cache: Path
) -> None:
    for name in (".unpack-old", ".unpack-new"):
        (cache / name / "model").mkdir(parents=True)
    os.utime(cache / ".unpack-old", (0, 0))

    with load(bundle):
        pass

    assert not (cache / ".unpack-old").exists()
    assert (cache / ".unpack-new").exists()


def test_cache_is_closed_to_others_when_it_was_open(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)

    private_folder(tmp_path / "open")

    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


def test_cache_is_refused_when_it_is_not_ours(
    bundle: Path, runners: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="a link, or another user's folder"):
        load(bundle, cache=tmp_path / "link")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be used as cache"):
        load(bundle, cache=tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UsageError, match="another user's folder"):
        private_folder(tmp_path)


def test_bundle_runs_from_a_temporary_folder_when_the_cache_cannot_be_written(
    bundle: Path, runners: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HYDISTILL_CACHE", str(tmp_path / "file" / "cache"))

    with load(bundle):
        folder = runners[0].file.parent
        assert folder.is_dir()
        assert stat.S_IMODE(folder.parent.parent.stat().st_mode) == 0o700
    assert not folder.exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HYDISTILL_CACHE": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/hydistill/bundles"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/hydistill/bundles"),
        ({"HYDISTILL_CACHE": "", "HOME": "/h"}, "/h/.cache/hydistill/bundles"),
    ],
    ids=["own", "xdg", "relative xdg", "home"],
)
def test_default_cache_is_where_the_environment_says(
    environment: dict[str, str], expected: str
) -> None:
    assert default_cache(environment) == Path(expected)
