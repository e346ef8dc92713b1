import inspect
import sys

from anomalib_lite import Detector, flags


class TestDefaults:
    def test_every_flag_is_a_parameter_of_the_detector(self):
        known = inspect.signature(Detector).parameters
        for flag in flags.DETECTOR_FLAGS:
            assert flags._RENAMED.get(flag, flag) in known

    def test_help_tells_the_true_defaults(self):
        known = inspect.signature(Detector).parameters
        for flag, (_, option) in flags.DETECTOR_FLAGS.items():
            told = option.help.split("[default: ")[1].removesuffix("]")
            default = known[flags._RENAMED.get(flag, flag)].default
            if default is None:  # what stands for it is said in words
                assert told not in ("", "None"), flag
            else:
                assert told == str(default), flag

    def test_what_a_flag_says_is_read(self):
        assert [flags._components(text) for text in ("12", "0.95", "none", "None")] == [12, 0.95, None, None]
        assert [flags._number_or_word(text) for text in ("3", "0.5", "1e-3", "knee")] == [3, 0.5, 1e-3, "knee"]


class TestTell:
    SENTENCE = "It goes on and on " * 30

    def test_breaks_long_lines_between_words_in_a_terminal(self, monkeypatch, capsys):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "60")
        flags.tell(f"short\n{self.SENTENCE}\n/a/path/{'x' * 80}")
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "short"
        assert max(map(len, lines[1:-1])) < 60
        assert " ".join(" ".join(lines[1:-1]).split()) == self.SENTENCE.strip()
        assert lines[-1] == f"/a/path/{'x' * 80}"

    def test_leaves_a_line_a_line_elsewhere(self, capsys):
        flags.tell(self.SENTENCE, err=True)
        assert capsys.readouterr().err == self.SENTENCE + "\n"
