import inspect

from anomalib_lite import Detector, flags


class TestDefaults:
    def test_every_flag_is_a_parameter_of_the_detector(self):
        known = inspect.signature(Detector).parameters
        for flag in flags.DETECTOR_FLAGS:
            assert flags._RENAMED.get(flag, flag) in known

    def test_help_tells_the_true_defaults(self):
        known = inspect.signature(Detector).parameters
        for flag, (_, option) in flags.DETECTOR_FLAGS.items():
            if "[default: " in option.help:
                told = option.help.split("[default: ")[1].rstrip("]")
                assert told == str(known[flags._RENAMED.get(flag, flag)].default), flag

    def test_what_a_flag_says_is_read(self):
        assert [flags._components(text) for text in ("12", "0.95", "none", "None")] == [12, 0.95, None, None]
        assert [flags._number_or_word(text) for text in ("3", "0.5", "1e-3", "knee")] == [3, 0.5, 1e-3, "knee"]
