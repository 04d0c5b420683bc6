"""How the doctor reads a cluster file: unreadable files, and the variables of a command."""

from pathlib import Path

import pytest

from tune_jobs.doctor.checks import examine
from tune_jobs.doctor.cluster_file import Command, NodeConfig


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory); check the path."),
        (b"a: [1", "is not YAML that Ray can read: "),
        (b"a: b: c", 'mapping values are not allowed here in "cluster.yaml", line 1, column 5.'),
        (b"\xff\xfe\xff", "is not YAML that Ray can read"),
        (b"a: \x01", "is not YAML that Ray can read"),
        (b"a: &a [*a]", "is not YAML that Ray can read"),
        (b"", "must hold a mapping, got nothing"),
        (b"just a text", "must hold a mapping, got a str"),
        (b"- a\n- b", "must hold a mapping, got a list"),
    ],
)
def test_cluster_file_unreadable(
    content: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("cluster.yaml")
    if content is not None:
        file.write_bytes(content)
    (finding,) = examine(file)
    assert (finding.check, finding.where) == ("file", "cluster.yaml")
    assert finding.message.startswith("cluster.yaml ")
    assert words in finding.message
    assert "\n" not in finding.message


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        ("A=1 B='x y' ~/bin/ray start --port=6379 --b=c", {"A": "1", "B": "x y"}),
        ("export A=1; export A=2 && ulimit -n 9\nray start", {"A": "2"}),
        ("(export A=1; ray start)", {"A": "1"}),
        ("A=1; B=2 ls; # C=3\nray start", {}),
        ("export A=b", {}),
        ("export A=b; echo x >> ~/.bashrc", {}),
        ("echo 'export A=\"b\"' >> ~/.bashrc", {"A": "b"}),
        ('echo "export A=\\"b\\"" >> "$HOME/.profile"', {"A": "b"}),
        ("grep -q A ~/.bashrc || echo export A=b c=d >>${HOME}/.bashrc", {"A": "b", "c": "d"}),
        ("cat >> ~/.bashrc <<'EOF'\nexport A=b\n# export A=c, don't\nEOF", {"A": "b"}),
        ("{ echo export A=b; echo export C=d; } >> ~/.bashrc", {"A": "b", "C": "d"}),
        ("echo A=b >> ~/.bashrc", {}),  # not exported
        ("printf 'export %s\\n' A=b > ~/other", {}),
        ("# export A=b >> ~/.bashrc", {}),
        ("A=b ls > log 2>&1", {}),
        ("pip install a==1 --index-url=x > ~/.bashrc", {}),
    ],
)
def test_command_sets_variables(command: str, variables: dict[str, str]) -> None:
    node = NodeConfig("head", "head", {}, (Command("setup_commands.0", command),))
    assert node.variables == variables


@pytest.mark.parametrize(
    ("command", "is_read"),
    [
        ("echo 'source ~/.env' >> ~/.bashrc", True),
        ("grep -q env ~/.bashrc || echo '[ -f ~/.env ] && . ~/.env' >> ~/.bashrc", True),
        ('printf "source $HOME/.env\\n" >> ~/.profile', True),
        ("source ~/.env; ray start", True),
        (". ~/.env && ray start", True),
        ("source ~/.env", False),  # in a shell that exits
        ("echo 'source ~/.env' > ~/start.sh", False),
        ("echo 'source ~/.env2' >> ~/.bashrc", False),
        ("# source ~/.env\nray start", False),
    ],
)
def test_command_sources_file(command: str, is_read: bool) -> None:
    """Variables in a file count if a startup file or the command of `ray start` sources it."""
    texts = ["printf 'export %s\\n' A=b 'P=$HOME/x:$P' > ~/.env", command]
    commands = tuple(Command(f"setup_commands.{i}", text) for i, text in enumerate(texts))
    node = NodeConfig("head", "head", {}, commands, run_options=("-e D=e",))
    assert node.variables == {"D": "e"} | ({"A": "b", "P": "$HOME/x:$P"} if is_read else {})
