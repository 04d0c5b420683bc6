"""The doctor on versions: the nodes get this machine's Python and the packages that jobs need."""

import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from cluster_files import (
    AWS,
    CASE,
    ONPREM,
    PINS,
    REPO,
    SHIPPED,
    Break,
    Case,
    add_setup,
    assert_only_finding,
    docker_image,
    drop,
    findings_after,
    findings_of,
    good,
    good_machine,
    install,
    swap,
)

from tune_jobs.doctor.checks import examine

TORCH, RAY = PINS["torch"], PINS["ray"]

# The file, the change that breaks it, and the only finding: check, where, words of the message.
BROKEN: list[Case] = [
    (
        AWS,
        swap("--python 3.11", "--python 3.12"),
        "python",
        "setup_commands.N",
        ["Python 3.12", "runs 3.11.7", "use the same version"],
    ),
    (
        AWS,
        swap("--python 3.11", "--python 3.11.9"),
        "python",
        "setup_commands.N",
        ["Python 3.11.9", "runs 3.11.7"],
    ),
    (
        AWS,
        swap(" --python 3.11", ""),
        "python",
        "setup_commands",
        ["no Python version is named for head and gpu_spot", "--python 3.11`"],
    ),
    (
        AWS,
        docker_image(f"rayproject/ray:{RAY}-py310-gpu"),
        "python",
        f"the image rayproject/ray:{RAY}-py310-gpu",
        ["Python 3.10", "runs 3.11.7"],
    ),
    (
        AWS,
        swap(f"torch=={TORCH}", "torch==1.0"),
        "versions",
        "setup_commands.N",
        ["torch==1.0", f"constraints.txt has {TORCH}", f"write torch=={TORCH}"],
    ),
    (
        AWS,
        swap(f"ray[default,tune]=={RAY}", "ray[default,tune]"),
        "versions",
        "setup_commands.N",
        ["ray[default,tune] names no version", f"write ray=={RAY}"],
    ),
    (
        ONPREM,
        swap(f"optuna=={PINS['optuna']}", "optuna>=5.0"),
        "versions",
        "setup_commands.N",
        ["optuna>=5.0 names no version", f"optuna=={PINS['optuna']}"],
    ),
    (
        ONPREM,
        swap(f"optuna=={PINS['optuna']}", "optuna==5.*"),
        "versions",
        "setup_commands.N",
        ["optuna==5.* names no version"],
    ),
    (
        ONPREM,
        swap(f'"torch=={TORCH}"', ""),
        "versions",
        "setup_commands",
        ["no command installs torch on head and workers", f"install torch=={TORCH}"],
    ),
    (
        AWS,
        docker_image("rayproject/ray-ml:2.60.0-gpu"),
        "versions",
        "docker",
        ["rayproject/ray-ml:2.60.0-gpu", "use rayproject/ray "],
    ),
    (
        AWS,
        docker_image("rayproject/ray:2.9.0-py311-gpu"),
        "versions",
        "the image rayproject/ray:2.9.0-py311-gpu",
        ["ray==2.9.0", f"write ray=={RAY}"],
    ),
    (
        AWS,
        docker_image("rayproject/ray:latest-py311"),
        "versions",
        "the image rayproject/ray:latest-py311",
        ["names no version"],
    ),
    (
        AWS,
        drop("head_setup_commands"),
        "versions",
        "Ray's default head_setup_commands.N",
        ["boto3>=1.4.8 names no version", "write your own commands there, or []"],
    ),
]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_machine(tmp_path, monkeypatch)


@pytest.mark.parametrize(CASE, BROKEN)
def test_versions_problem_found(
    name: str, broken: Break, check: str, where: str, words: list[str]
) -> None:
    assert_only_finding(name, broken, check, where, words)


@pytest.mark.parametrize(
    "fine",
    [
        swap("--python 3.11", "--python 3.11.7"),
        swap("--python 3.11", "&& python3.11 -m venv"),
        swap("--python 3.11", "&& conda create -y python=3.11 -p"),
        swap("--python 3.11", "-p 3.11"),
        swap("--python 3.11", "--python=3.11"),
        swap("uv pip install --quiet", "python -m pip install -U"),
        swap(f"torch=={TORCH}", f"torch=={TORCH}+cu130"),
        swap(f'"filelock=={PINS["filelock"]}"', ""),  # Ray requires it
        add_setup("pip install -c constraints.txt lightning"),
        add_setup("pip install --constraint=constraints.txt lightning"),
        add_setup("pip install -r requirements.txt"),
        add_setup(f"pip install numpy=={PINS['numpy']} >log 2>&1 && echo installed"),
        add_setup("pip install of-our-own==1.0"),
        docker_image(f"rayproject/ray:{RAY}-py311-gpu"),
        docker_image("ours/of-our-own:1"),
    ],
)
def test_versions_good_change_passes(fine: Break) -> None:
    assert findings_after(AWS, fine) == []


def test_versions_extra_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes need not install what an extra of Ray requires that jobs require too."""
    requires = {
        "tune-jobs": ["ray[tune]>=2", "pandas", "scipy", 'boto3; extra == "cluster"'],
        "ray": ["click", 'pandas; extra == "tune"', 'scipy; extra == "air"'],
    }
    monkeypatch.setattr(metadata, "requires", requires.__getitem__)
    (finding,) = findings_of(good(AWS))
    assert "no command installs scipy on head and gpu_spot" in finding.message


@pytest.mark.parametrize("name", SHIPPED)
def test_versions_shipped_file_pins(name: str) -> None:
    pins = re.findall(r'"([\w-]+)(?:\[[\w,]+\])?==([^"]+)"', (REPO / name).read_text())
    assert {"ray", "optuna", "torch", "pytorch-lightning"} <= dict(pins).keys()
    assert dict(pins) == {package: PINS[package] for package, _ in pins}


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("pip install a", ["a"]),
        ("pip3.11 install -q 'a>=1' \"b\"", ["a>=1", "b"]),
        ("cd x && /opt/bin/pip install a; pip install b || true", ["a", "b"]),
        ("bash -c 'pip install a'", ["a"]),
        ("pip install \\\n  a  # one\npip install \\\n  b\nls c", ["a", "b"]),
        ("pip install -U --python 3.11 -p 3.11 --target=y a", ["a"]),
        ("(set -e; pip install a; pip install b)", ["a", "b"]),
        ("cd x; # pip install a", []),
        ("pip install . ./a.whl -e .[x] 'git+https://x/y' a  # b", ["a"]),
        ("pip install 'a @ https://x/a.whl'", ["a @ https://x/a.whl"]),
        ("pip install a 'b", ["a", "b"]),  # left to the shell to report
        ("pip install 'b>=1,<2' 'c==1.*'", ["b<2,>=1", "c==1.*"]),
        ("apt install pip; npm install x; echo install", []),
    ],
)
def test_versions_package_unpinned(command: str, found: list[str]) -> None:
    findings = findings_after(AWS, add_setup(command))
    assert [f.message.partition(" names no version")[0] for f in findings] == found


def test_versions_machine_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, PINS | {"optuna": "4.0.0"})
    (finding,) = findings_of(good(AWS))
    assert (finding.check, finding.where) == ("versions", "this machine")
    assert "optuna 4.0.0 is installed here" in finding.message
    assert f"run `pip install optuna=={PINS['optuna']}`" in finding.message


def test_versions_gpu_build_same(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, PINS | {"torch": f"{TORCH}+cu130"})
    assert findings_of(good(AWS)) == []


def test_versions_without_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without constraints.txt, this machine's versions are the expected ones."""
    Path("constraints.txt").unlink()
    assert findings_of(good(AWS)) == []
    install(monkeypatch, PINS | {"optuna": "4.0.0"})
    (finding,) = findings_of(good(AWS))
    assert finding.where.startswith("setup_commands.")
    assert "this machine has 4.0.0; write optuna==4.0.0" in finding.message


def test_versions_constraints_location() -> None:
    """constraints.txt beside the cluster file takes precedence over the one here."""
    folder = Path("clusters")
    folder.mkdir()
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(good(AWS)))
    assert examine(file) == []
    (folder / "constraints.txt").write_text("optuna==4.0  # newer\ntorch==1.*\n")
    messages = [finding.message for finding in examine(file)]
    assert len(messages) == 2  # the file's pin, and what is installed here
    assert all("constraints.txt has 4.0" in message for message in messages)


def test_versions_default_setup() -> None:
    """Ray's default setup commands install a nightly Ray and nothing else."""
    messages = " ".join(f.message for f in findings_after(AWS, drop("setup_commands")))
    assert "ray-3.0.0.dev0-cp310" in messages
    missing = re.search(r"no command installs ([\w, -]+) on ", messages)  # in any order
    assert missing is not None
    assert {"optuna", "torch", "pytorch-lightning"} <= set(missing[1].split(", "))
