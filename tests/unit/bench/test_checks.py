"""Each check is shown an answer that passes and answers that nearly do."""

from __future__ import annotations

import pytest

from qwen_edge.bench import answer_checks as checks
from qwen_edge.bench.code_check import extract_code, failure_of
from tests.address_space import skip_without_limits

GERMAN = "Ein Computer ist eine Maschine, die Daten verarbeitet und die man mit einem Programm steuern kann."
FRENCH = "Un ordinateur est une machine qui traite des données et que l'on commande avec un programme."
ENGLISH = "A computer is a machine that works on data and that can be told what to do by a program."
CHINESE = "北京是中国的首都，拥有悠久的历史和丰富的文化。"


@pytest.mark.parametrize(("language", "text"), [("German", GERMAN), ("French", FRENCH)])
def test_a_language_is_told_by_its_function_words(language, text):
    assert checks.in_language(language)(text) == ""


@pytest.mark.parametrize("language", ["German", "French"])
@pytest.mark.parametrize(
    "text", [ENGLISH, CHINESE, "", "Ja", "Computer Daten Programm Maschine Internet Kabel"]
)
def test_another_language_or_none_fails(language, text):
    assert checks.in_language(language)(text)


def test_the_wrong_one_of_two_languages_and_a_mixture_fail():
    assert "not German" in checks.in_language("German")(FRENCH)
    assert "not French" in checks.in_language("French")(GERMAN)
    assert "Chinese characters" in checks.in_language("German")(GERMAN.replace("Maschine", "机器"))


def test_chinese_is_told_by_its_script():
    assert checks.in_chinese(CHINESE) == ""
    assert checks.in_chinese("北京 is the capital of China and has a long history.")
    assert checks.in_chinese("北京")
    assert checks.in_chinese("")


@pytest.mark.parametrize("text", ["42", "The answer is 42.", "**42**"])
def test_the_one_right_number_passes(text):
    assert checks.only_number(42)(text) == ""


@pytest.mark.parametrize("text", ["", "43", "17 + 25 = 42", "-42", "42.5", "forty-two", "1,042"])
def test_other_numbers_fail(text):
    assert checks.only_number(42)(text)


def test_one_word():
    assert checks.only_word("Tokyo")("tokyo.\n") == ""
    assert checks.only_word("Tokyo")("The capital is Tokyo.")


def test_json_is_parsed_and_compared():
    check = checks.json_object({"name": "Anna", "age": 31})
    assert check('{"age": 31, "name": "Anna"}') == ""
    assert check('```json\n{"name": "Anna", "age": 31}\n```') == ""
    assert check('{"name": "Anna", "age": "31"}')
    assert check('{"name": "Anna"}')
    assert check('{"name": "Anna", "age": 31')
    assert check("[1]")


def test_mentions():
    assert checks.mentions("17", "sunny")("It is 17 degrees and SUNNY.") == ""
    assert checks.mentions("17")("It is warm.") == "does not mention 17"


def test_code_comes_from_the_first_fence():
    assert extract_code("Here:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"
    assert extract_code("```\ncut off") == "cut off"


def test_working_code_passes():
    answer = "Sure!\n```python\ndef double(n):\n    print('noise')\n    return 2 * n\n```\nIt doubles."
    assert checks.working_code("assert double(2) == 4", "assert double(-1) == -2")(answer) == ""


def test_a_wrong_function_fails_with_the_assertion():
    failure = failure_of("def double(n): return n + 2", ["assert double(2) == 4", "assert double(3) == 6"])
    assert failure == "assert double(3) == 6: AssertionError"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def double(n) return", "SyntaxError"),
        ("def triple(n): return 3 * n", "NameError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("import os; os.write(1, b'passed'); os._exit(0)", "ended early"),
        ("open('/tmp/x-qwen-edge', 'w').write('x')", "Error"),
        ("x = bytearray(4 << 30)", "MemoryError"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_code_that_dodges_the_assertions_fails(source, expected):
    if expected == "MemoryError":
        skip_without_limits()
    assert expected in failure_of(source, ["assert double(2) == 4"])


def test_an_endless_loop_is_ended():
    assert failure_of("while True: pass", ["assert True"], time_limit_s=0.5) == "not finished after 0.5 s"


def test_a_sleeping_answer_is_ended_with_its_children():
    source = "import subprocess; subprocess.run(['sleep', '60'])"
    assert "not finished" in failure_of(source, ["assert True"], time_limit_s=0.5)
