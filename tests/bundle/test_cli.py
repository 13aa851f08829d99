"""`python -m bundle`: quick help, early and short errors, exit codes, and the job that runs."""

import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from warm_process import run_module, started_module

from bundle import cli
from bundle.jobs import JOBS
from bundle.tools import TOOLS
from scripts import errors

ROOT = cli.ROOT
HEAVY = ("torch", "monai", "ignite")

CONFIG = """\
bundle_root: .
dataset_dir: "$@bundle_root + '/data/none'"
learned_atlas:
  device: "$'cuda' if torch.cuda.is_available() else 'cpu'"
  optimizer: {lr: 1e-3}
settings:
  _target_: scripts.settings.atlas.load_settings
  block: '@learned_atlas'
training:
- "$print('ran', @settings.optimizer.epochs, @settings.save_fields, @settings.refine.rounds)"
- "$print('root', @bundle_root)"
exporting: ["$print('exported')"]
registering: ["$print('registered')"]
run: ['@training']
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def bundle(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does; from elsewhere it is named by its folder."""
    package = ["-m", "bundle"] if cwd == ROOT else [str(ROOT / "bundle")]
    command = [sys.executable, *package, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def heavy_imports(*words: object) -> list[str]:
    """Heavy modules loaded after running the command in a fresh interpreter."""
    program = textwrap.dedent(
        f"""
        import sys
        from bundle.cli import main
        try:
            main(sys.argv[1:])
        except SystemExit:
            pass
        print("LOADED", *[name for name in {HEAVY} if name in sys.modules])
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("LOADED")]
    return line.split()[1:]


# --- help -------------------------------------------------------------------------------------


def test_help_lists_verbs_and_exit_codes():
    result = bundle("--help")
    assert result.returncode == 0
    for verb in (*JOBS, *TOOLS):
        assert re.search(rf"^\s+{verb}\b", result.stdout, re.MULTILINE)
    for kind in errors.TractAtlasError.__subclasses__():
        assert re.search(rf"^\s+{kind.exit_code}  \w", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("verb", [*JOBS, *TOOLS])
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"python -m bundle {verb}" in printed
    if verb in JOBS:
        assert JOBS[verb].config in printed


def test_help_is_quick_and_light():
    assert heavy_imports("--help") == []
    assert heavy_imports("train", "--help") == []
    fastest = min(_seconds("train", "--help") for _ in range(3))
    assert fastest < 0.5


def _seconds(*words: object) -> float:
    """CPU seconds, which a busy machine lengthens little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert bundle(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_documented_exit_codes_are_the_real_ones():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {kind.exit_code for kind in errors.TractAtlasError.__subclasses__()}
    assert documented == raised | {0, 1, 2, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED}


def test_documented_verbs_are_the_real_ones():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    verbs = page.split("## Verbs")[1].split("## Overrides")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \| (?:`(\w+)`|–) \|", verbs, re.MULTILINE)
    jobs = {verb: job.run_id or "" for verb, job in JOBS.items()}
    assert dict(rows) == jobs | dict.fromkeys(TOOLS, "")


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "VERB"),
        (["trian"], "'trian' is not a verb; did you mean train?"),
        (["xyz"], "'xyz' is not a verb\nsee: python -m bundle --help"),
        (["demo", "--fodler", "x"], "unrecognized arguments: --fodler x"),
        (["train", "stray"], "error: unexpected argument 'stray'"),
        (
            ["train", "--config_file", "none.yaml"],
            "error: no such configuration file: none.yaml",
        ),
    ],
)
def test_usage_errors(words, message, capsys):
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = ended.code
    assert code == cli.EXIT_USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--learned_atlas#optimizer#lr=-1", "learned_atlas.optimizer.lr = -1"),
        ("--learned_atlas#optimizer#lr=nan", "learned_atlas.optimizer.lr = 'nan'"),
        ("--learned_atlas#optimiser#lr=1", "did you mean optimizer?"),
        ("--learned_atlas#refine#rounds=x", "learned_atlas.refine.rounds = 'x'"),
        ("--learned_atlas#output_subdir=atlas", "learned_atlas.output_subdir = 'atlas'"),
        ("--datset_dir=/x", "did you mean --dataset_dir?"),
    ],
)
def test_settings_errors_are_one_line_and_code_2(config, override, message, capsys):
    assert cli.main(["train", "--config_file", str(config), override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "--layout", "flat"], "--learned_atlas#cohort#layout"),
        (["train", "--refine#rounds", "2"], "--learned_atlas#refine#rounds"),
        (["refine", "--fixed", "a.nii.gz"], "--refine#fixed"),
    ],
)
def test_a_setting_without_its_block_is_explained(words, meant, capsys):
    assert cli.main(words) == 2
    assert f"; did you mean {meant}?\n" in capsys.readouterr().err


def test_settings_errors_come_before_torch(config):
    words = ["train", "--config_file", config, "--learned_atlas#optimizer#lr", "-1"]
    assert heavy_imports(*words) == []
    result = bundle(*words)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: learned_atlas.optimizer.lr = -1: must be a number > 0"
    ]


@pytest.mark.parametrize(
    ("verb", "override", "message"),
    [
        ("carry", ["--atlas_to_patient#space", "native"], "atlas_to_patient.space = 'native'"),
        ("carry", ["--atlas_to_patient#patient", "x"], "did you mean patients?"),
        ("compare", ["--tract_similarity#bins", "1"], "tract_similarity.bins = 1"),
        ("compare", ["--tract_similarity", "5"], "tract_similarity = 5: must be a mapping"),
        ("evaluate", ["--evaluate#seed", "-1"], "evaluate.seed = -1: must be an integer >= 0"),
        ("barycentre", ["--barycentre#blur", "-1"], "barycentre.blur = -1"),
        ("labels", ["--label_transfer#x", "1"], "label_transfer.x = 1: unknown key"),
        ("align", ["--align#rounds", "-1"], "align.rounds = -1"),
        ("warp", ["--warp#interpolation", "cubic"], "warp.interpolation = 'cubic'"),
        ("refine", ["--refine#moving", "['a/x.nii', 'b/x.nii.gz']"], "several images named x"),
        ("estimate-affine", ["--passes", "0"], "estimate_affine.passes = 0: must be null or"),
        ("register-elastic", ["--moving", "[]"], "register_elastic.moving = []: is empty"),
        ("cross-validate", ["--evaluate#folds", "1"], "evaluate.folds = 1"),
    ],
)
def test_other_blocks_of_settings_are_judged_before_torch(verb, override, message):
    """In a separate process, so that imports of other tests don't count."""
    code = (
        "import sys; from bundle.cli import main; code = main(sys.argv[1:]); "
        "print([name for name in ('torch', 'monai') if name in sys.modules]); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, verb, *override],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "[]\n"), result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_unknown_run_id_is_a_usage_error(config, capsys):
    config.write_text(CONFIG.replace("training:", "trainig:"), encoding="utf-8")
    assert cli.main(["train", "--config_file", str(config)]) == 2
    assert "has no training to run" in capsys.readouterr().err


# --- errors while a job runs ------------------------------------------------------------------


@pytest.mark.parametrize("kind", errors.TractAtlasError.__subclasses__(), ids=lambda k: k.__name__)
def test_user_errors_end_with_their_code_even_when_wrapped(kind, config, monkeypatch, capsys):
    def fail(*_):
        try:
            raise kind("sub-01 is broken")
        except kind as cause:
            raise RuntimeError("Failed to instantiate component") from cause

    monkeypatch.setattr(cli, "_run_in_monai", fail)
    assert cli.main(["train", "--config_file", str(config)]) == kind.exit_code
    assert capsys.readouterr().err == "error: sub-01 is broken\n"


def test_other_errors_keep_their_traceback(config, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(cli, "_run_in_monai", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config_file", str(config)])


def test_interruption_is_130(config, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run_in_monai", interrupt)
    assert cli.main(["train", "--config_file", str(config)]) == 130


def test_exit_codes_are_distinct():
    codes = [kind.exit_code for kind in errors.TractAtlasError.__subclasses__()]
    codes += [0, 1, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED]
    assert len(set(codes)) == len(codes)


# --- jobs in MONAI ----------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What would be handed to `monai.bundle.run`."""
    calls = []
    monkeypatch.setattr(cli, "_run_in_monai", lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize(
    ("verb", "run_id"),
    [("train", "training"), ("export", "exporting"), ("register", "registering")],
)
def test_verbs_run_their_id(verb, run_id, config, asked):
    assert cli.main([verb, "--config_file", str(config)]) == 0
    ((asked_id, files, _),) = asked
    assert (asked_id, files) == (run_id, [config])


def test_root_logging_and_metadata_are_absolute_from_elsewhere(
    config, asked, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config_file", str(config)]) == 0
    assert asked[0][2] == {
        "bundle_root": str(ROOT),
        "logging_file": str(ROOT / "configs" / "logging.conf"),
        "meta_file": str(ROOT / "configs" / "metadata.json"),
    }
    assert all(Path(path).exists() for path in asked[0][2].values())


def test_own_root_and_files_win(config, asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logging.conf").touch()
    words = ["--config_file", str(config), "--bundle_root", "/mine", "--meta_file", "my.json"]
    assert cli.main(["train", *words]) == 0
    assert asked[0][2] == {"bundle_root": "/mine", "meta_file": "my.json"}


def test_job_runs_in_monai_with_overrides_from_another_folder(config, tmp_path):
    result = bundle(
        *("train", "--config_file", config.name, "--learned_atlas#optimizer#epochs", "3"),
        *("--learned_atlas#save_fields=false", "--learned_atlas#refine#rounds", "2"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "ran 3 False 2" in result.stdout
    assert f"root {ROOT}" in result.stdout


def test_error_that_only_monai_can_find_is_one_line_too(config):
    words = ["train", "--config_file", str(config), "--learned_atlas#dtype", "$'float' + str(3)"]
    result = run_module("bundle", words, ROOT, os.environ)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: learned_atlas.dtype = 'float3': must be one of float16, float32, bfloat16"
    ]
    assert "Traceback" not in result.stderr


def test_terminated_job_unwinds_and_ends_with_143(config, tmp_path):
    started, cleaned = tmp_path / "started", tmp_path / "cleaned"
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(
            f"""
            import time
            from pathlib import Path

            def work():
                try:
                    Path({str(started)!r}).touch()
                    time.sleep(120)
                finally:
                    Path({str(cleaned)!r}).touch()
            """
        ),
        encoding="utf-8",
    )
    config.write_text(
        "slow: {_target_: slow.work}\ntraining: ['@slow']\nrun: ['@training']\n", encoding="utf-8"
    )
    words = ["train", "--config_file", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with started_module("bundle", words, ROOT, environment) as process:
        deadline = time.monotonic() + 120
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        ended = process.wait(60)
    assert ended.returncode == 143, ended.stderr
    assert cleaned.exists()
    assert "Traceback" not in ended.stderr


def test_logging_file_is_accepted_and_quiet():
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import logging, logging.config\n"
            "logging.config.fileConfig('configs/logging.conf', disable_existing_loggers=False)\n"
            "logging.getLogger('ignite.engine.engine.Trainer').info('torn bar')\n"
            "logging.getLogger('monai.bundle.scripts').info('input summary')\n"
            "logging.getLogger('scripts.atlas').info('published')\n"
            "logging.getLogger('ignite.engine').warning('look')\n",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    output = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert output == ["INFO published", "WARNING look"]


# --- check and demo ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    from scripts.phantom import write_demo_cohort

    folder = tmp_path_factory.mktemp("cohort") / "demo"
    write_demo_cohort(folder, subjects=5, held_out=0, shape=(24, 28, 24), spacing=6.0)
    return folder


def test_check_prints_the_cohort_without_torch(config, cohort, capsys):
    words = ["check", "--config_file", str(config), "--dataset_dir", str(cohort)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"sub-{index:02d}" in printed for index in range(1, 6))
    assert "grid 24x28x24 at 6 x 6 x 6 mm" in printed
    assert heavy_imports(*words) == []


def test_check_of_an_unusable_cohort(config, cohort, capsys):
    words = ["--config_file", str(config), "--dataset_dir", str(cohort)]
    assert cli.main(["check", *words, "--learned_atlas#min_subjects", "6"]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "sub-05" in captured.err
    assert captured.out == ""


def test_check_resolves_the_configured_folder(config, capsys):
    assert cli.main(["check", "--config_file", str(config)]) == 3
    assert "data/none does not exist" in capsys.readouterr().err


def test_check_of_settings_that_only_the_job_knows(config, capsys):
    words = ["check", "--config_file", str(config), "--learned_atlas#min_subjects", "$len('ab')"]
    assert cli.main([*words, "--learned_atlas#optimizer#lr", "-1"]) == 2
    assert "an expression that only the job" in capsys.readouterr().err


def test_demo_makes_a_cohort_in_the_folder(tmp_path, monkeypatch, capsys):
    made = []

    def ensure(folder):
        made.append(folder)
        return str(folder)

    monkeypatch.setattr("scripts.phantom.ensure_demo_cohort", ensure)
    assert cli.main(["demo", "--folder", str(tmp_path / "demo")]) == 0
    assert made == [tmp_path / "demo"]
    assert capsys.readouterr().out == f"{tmp_path / 'demo'}\n"


def test_demo_with_an_age_effect_makes_a_new_cohort_or_says_why_not(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(
        "scripts.phantom.write_demo_cohort", lambda folder, **options: made.append(options)
    )
    words = ["demo", "--folder", str(tmp_path / "demo"), "--subjects", "7"]
    assert cli.main([*words, "--age_effect", "4"]) == 0
    assert made == [{"subjects": 7, "shape": (64, 72, 64), "age_effect": 4.0}]
    monkeypatch.undo()
    assert cli.main([*words, "--age_effect", "40"]) == 2
    assert "age_effect must be 0 to 8 mm, got 40.0" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def redirected(words: str, how: str, **more) -> subprocess.CompletedProcess[str]:
    """A command whose streams the shell changes."""
    command = f"exec {sys.executable} -m bundle {words} {how}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, **more)


def test_closed_streams_are_no_error(tmp_path, config, cohort):
    folder = tmp_path / "demo"
    words = f"demo --folder {folder} --age_effect 1 --subjects 3 --size 16"
    assert redirected(words, ">&- 2>&- <&-").returncode == 0
    assert folder.is_dir()
    checked = redirected(f"check --config_file {config} --dataset_dir {cohort}", ">&-")
    assert checked.returncode == 0, checked.stderr


def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    command = f"cd {tmp_path} && rmdir {tmp_path} && exec {sys.executable} {ROOT}/bundle check"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == 7
    assert "error: the working directory can't be entered: No such file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_below_the_output_is_one_line(config, cohort, unbuffered):
    words = f"check --config_file {config} --dataset_dir {cohort}"
    result = redirected(words, ">/dev/full", env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert result.returncode == 7
    assert result.stderr.endswith("No space left on device\n")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
