import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.exit_status import run_main


def _raise(error):
    raise error


def test_success_is_zero():
    assert run_main(lambda: None) == 0


def test_bad_input_is_one_line_without_traceback(capsys):
    assert run_main(lambda: _raise(UserError("file a.json:\n  not   JSON"))) == 2
    assert capsys.readouterr().err == "error: file a.json: not JSON\n"


def test_ctrl_c(capsys):
    assert run_main(lambda: _raise(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        run_main(lambda: _raise(SystemExit(3)))
