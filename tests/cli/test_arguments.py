"""Wrong arguments are one line, with what was probably meant."""

import pytest

from condexp.cli.main import main


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show"], "show: the following arguments are required: RUN. Usage: condexp show"),
        (["show", "a", "b"], "show: 'b' is one argument too many. Usage: "),
        (["show", "a", "--sortt", "x"], "unknown option '--sortt'. Did you mean '--sort'?"),
        (["show", "a", "--top", "x"], "show: argument --top: invalid int value: 'x'."),
        (["run", "foo"], "'foo' is no override, which has the form key=value"),
        (["run", "--multirum"], "unknown option '--multirum'. Did you mean '--multirun'?"),
        (["--versoin"], "unknown option '--versoin'. Did you mean '--version'?"),
        (["layers", "--foo=1"], "unknown option '--foo=1'."),
        (["report", "nowhere"], "there is no folder nowhere."),
    ],
)
def test_wrong_arguments_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert len(err.splitlines()) == 1
