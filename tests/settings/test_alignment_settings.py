"""Bad settings of align, refine and warp are one line each, without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.errors import ConfigurationError
from scripts.settings.align import AlignConfig
from scripts.settings.refine import RefineConfig
from scripts.settings.warp import WarpConfig

PAIR = {"fixed": "a.nii.gz", "moving": ["b.nii.gz"]}
WARP = {"subjects": ["a"], "image": "i", "reference": "r", "transforms": ["t.txt"]}


@pytest.mark.parametrize(
    ("kind", "given", "wanted"),
    [
        (AlignConfig, {"image": "t2.nii.gz"}, "align.image"),
        (AlignConfig, {"image": "../{subject}.nii"}, "align.image"),
        (AlignConfig, {"labels": ["l.nii.gz"]}, "align.labels"),
        (AlignConfig, {"family": "projective"}, "align.family"),
        (AlignConfig, {"levels": [2, 4]}, "align.levels"),
        (AlignConfig, {"levels": []}, "align.levels"),
        (AlignConfig, {"starts": ["magic"]}, "align.starts"),
        (AlignConfig, {"rounds": 0}, "align.rounds"),
        (AlignConfig, {"spacing": 0}, "align.spacing"),
        (AlignConfig, {"log_offset": -1}, "align.log_offset"),
        (AlignConfig, {"correlation_window": 4}, "align.correlation_window"),
        (AlignConfig, {"subjects": ["a", "a"]}, "align.subjects"),
        (AlignConfig, {"output_subdir": "a/b"}, "align.output_subdir"),
        (AlignConfig, {"device": "tpu"}, "align.device"),
        (AlignConfig, {"famly": "rigid"}, "align.famly"),
        (RefineConfig, {"moving": ["b"]}, "refine.fixed"),
        (RefineConfig, {"fixed": "a"}, "refine.moving"),
        (RefineConfig, {**PAIR, "mode": "both"}, "refine.mode"),
        (RefineConfig, {**PAIR, "int_steps": 0}, "refine.int_steps"),
        (RefineConfig, {**PAIR, "tolerance": "nan"}, "refine.tolerance"),
        (WarpConfig, {**WARP, "subjects": []}, "warp.subjects"),
        (WarpConfig, {**WARP, "subjects": ["a/b"]}, "warp.subjects"),
        (WarpConfig, {**WARP, "transforms": []}, "warp.transforms"),
        (WarpConfig, {**WARP, "image": " "}, "warp.image"),
    ],
)
def test_a_broken_rule_names_its_key(kind, given, wanted) -> None:
    with pytest.raises(ConfigurationError) as raised:
        kind.load(given)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(wanted)


def test_defaults_hold_and_numbers_may_be_text() -> None:
    assert AlignConfig.load({"tolerance": "1e-5"}).tolerance == 1e-5
    assert RefineConfig.load({**PAIR, "moving": "b.nii.gz"}).moving == ["b.nii.gz"]
    assert AlignConfig.load(None).levels == [4, 2]


def test_settings_need_no_torch() -> None:
    code = (
        "import sys; import scripts.settings.align, scripts.settings.refine;"
        "import scripts.settings.warp, scripts.settings.image_pairs;"
        "assert 'torch' not in sys.modules and 'monai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
