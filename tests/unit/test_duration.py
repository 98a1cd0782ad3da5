"""Durations: every case of Go's own tables, and the arithmetic that they leave open."""

import pytest

from agentd.card.duration import parse_duration

US = 1_000
MS = 1_000 * US
S = 1_000 * MS
M = 60 * S
H = 60 * M
INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)

GO_VALID = [
    # simple
    ("0", 0),
    ("5s", 5 * S),
    ("30s", 30 * S),
    ("1478s", 1478 * S),
    # sign
    ("-5s", -5 * S),
    ("+5s", 5 * S),
    ("-0", 0),
    ("+0", 0),
    # decimal
    ("5.0s", 5 * S),
    ("5.6s", 5 * S + 600 * MS),
    ("5.s", 5 * S),
    (".5s", 500 * MS),
    ("1.0s", S),
    ("1.00s", S),
    ("1.004s", S + 4 * MS),
    ("1.0040s", S + 4 * MS),
    ("100.00100s", 100 * S + MS),
    # different units
    ("10ns", 10),
    ("11us", 11 * US),
    ("12\u00b5s", 12 * US),
    ("12\u03bcs", 12 * US),
    ("13ms", 13 * MS),
    ("14s", 14 * S),
    ("15m", 15 * M),
    ("16h", 16 * H),
    # composite
    ("3h30m", 3 * H + 30 * M),
    ("10.5s4m", 4 * M + 10 * S + 500 * MS),
    ("-2m3.4s", -(2 * M + 3 * S + 400 * MS)),
    ("1h2m3s4ms5us6ns", H + 2 * M + 3 * S + 4 * MS + 5 * US + 6),
    ("39h9m14.425s", 39 * H + 9 * M + 14 * S + 425 * MS),
    # large
    ("52763797000ns", 52763797000),
    # more than nine digits behind the point
    ("0.3333333333333333333h", 20 * M),
    # more than a float64 holds exactly
    ("9007199254740993ns", (1 << 53) + 1),
    # the largest
    ("9223372036854775807ns", INT64_MAX),
    ("9223372036854775.807us", INT64_MAX),
    ("9223372036s854ms775us807ns", INT64_MAX),
    ("-9223372036854775808ns", INT64_MIN),
    ("-9223372036854775.808us", INT64_MIN),
    ("-9223372036s854ms775us808ns", INT64_MIN),
    ("-9223372036854775807ns", INT64_MIN + 1),
    ("-2562047h47m16.854775808s", INT64_MIN),
    # a long string
    ("0.100000000000000000000h", 6 * M),
    # a fraction that overflows while it is read
    ("0.830103483285477580700h", 49 * M + 48 * S + 372539827),
]

GO_INVALID = [
    "",
    "3",
    "-",
    "s",
    ".",
    "-.",
    ".s",
    "+.s",
    "1d",
    "\udc85\udc85",
    "\udcffff",
    "hello \udcffff world",
    "\ufffd",
    "\ufffd hello \ufffd world",
    # overflow
    "9223372036854775810ns",
    "9223372036854775808ns",
    "-9223372036854775809ns",
    "9223372036854776us",
    "3000000h",
    "9223372036854775.808us",
    "9223372036854ms775us808ns",
]


@pytest.mark.parametrize(("text", "nanoseconds"), GO_VALID)
def test_go_table_of_valid_durations(text: str, nanoseconds: int) -> None:
    """Each duration that Go's own test accepts is read to the same nanosecond."""
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", GO_INVALID)
def test_go_table_of_invalid_durations(text: str) -> None:
    """Each text that Go's own test refuses is refused."""
    with pytest.raises(ValueError, match="the duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0s", 0),
        ("00", None),
        ("0.0", None),
        ("--5s", None),
        ("+-5s", None),
        ("1h 30m", None),
        (" 1s", None),
        ("1s ", None),
        ("1s\n", None),
        ("1S", None),
        ("1e3s", None),
        ("1_000s", None),
        ("1..5s", None),
        ("1.5.s", None),
        ("-5s-3s", None),
        ("\u0665s", None),
        ("1s1s1s", 3 * S),
        ("000000000000000000000000000001s", S),
        ("0.9ns", 0),
        ("1.9ns", 1),
        ("0.15h", 9 * M),
        # float64 rounds it up
        (".99999999999999999999s", S),
        ("0." + "0" * 400 + "1h", 0),
        ("0" * 5000 + "1ns", 1),
        ("9" * 5000 + "ns", None),
        ("-9223372036854775808ns1ns", None),
    ],
)
def test_cases_beyond_gos_table(text: str, nanoseconds: int | None) -> None:
    """Spaces, repeated units, other digits, long numbers and tiny fractions are taken as Go takes them."""
    if nanoseconds is None:
        with pytest.raises(ValueError, match="the duration"):
            parse_duration(text)
    else:
        assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'the duration "" has no number in it: write for example "30s" or "1h30m"'),
        ("30", 'the duration "30" has a number without a unit: write for example "30s" or "1h30m"'),
        ("1d", 'the duration "1d" has the unknown unit "d": write for example "30s" or "1h30m"'),
        ("5mss", 'the duration "5mss" has the unknown unit "mss"; did you mean "ms"?: write for example "30s"'),
        ("abc", 'the duration "abc" has something else where a number is expected: write for example'),
        ("3000000h", 'the duration "3000000h" is longer than the 292 years that a duration can have'),
        ("\x1b[31m\n", 'the duration "\\x1b[31m\\n" has something else'),
        ("x" * 1000, f'the duration "{"x" * 59}…" has something else'),
    ],
)
def test_message_quotes_the_text_and_says_what_to_write(text: str, message: str) -> None:
    """The error names the text, shortened and harmless to a terminal, the fault and an example."""
    with pytest.raises(ValueError, match="the duration") as caught:
        parse_duration(text)
    assert str(caught.value).startswith(message)
