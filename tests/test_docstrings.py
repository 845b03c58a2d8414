"""The examples in the docstrings of the main functions run and print what they show."""

import doctest
import inspect

import pytest

import tbptt

# The ten functions that a first program calls, and the package itself.
MAIN = [
    tbptt,
    tbptt.LSTM,
    tbptt.unroll,
    tbptt.parallel_unroll,
    tbptt.init_params,
    tbptt.sequence_loss,
    tbptt.predict,
    tbptt.truncated_bptt,
    tbptt.full_bptt,
    tbptt.make_train_step,
    tbptt.make_train_epoch,
]
BY_NAME = [
    pytest.param(each, id=each.__name__, marks=() if each is tbptt.LSTM else pytest.mark.exhaustive)
    for each in MAIN  # essential tier: one; the example of the README trains
]


@pytest.mark.parametrize("documented", BY_NAME)
def test_the_example_of_a_docstring_runs(documented):
    text, name = inspect.getdoc(documented), documented.__name__
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert test.examples, f"{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    assert not report, "".join(report)
