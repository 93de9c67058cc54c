"""Messages: printed commands can be typed again."""

import subprocess

import pytest

from lora.errors import as_command


@pytest.mark.parametrize("word", ["plain", "a b", "task='/my data/it\\'s.yaml'", "x'\"$HOME`!\\", "", "[q,v]"])
def test_a_command_that_is_printed_means_the_same_in_a_shell(word):
    printed = as_command(["printf", "%s", word])
    assert subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=True).stdout == word


def test_a_path_in_quotes_of_hydras_stays_readable():
    assert as_command(["report", "task='/my data/a.yaml'"]) == "report \"task='/my data/a.yaml'\""
