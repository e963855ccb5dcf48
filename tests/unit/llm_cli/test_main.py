"""How `llm` begins."""

from llm_cli import main as entry


def test_ctrl_c_while_it_begins_is_no_traceback(monkeypatch):
    def interrupted(_argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.arguments, "parse", interrupted)
    assert entry.main([]) == 130
