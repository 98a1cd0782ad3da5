import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.tmux.protocol import FrameParser, ProtocolError, Reply, command_line, escape_format, quote

FRAME = b"%begin 1700000000 7 1\nfirst\n\n%end 1700000000 6 1\n%output %1 x\nl\xc3\xa9st\n%end 1700000000 7 1\n"
REPLY = Reply(ok=True, lines=("first", "", "%end 1700000000 6 1", "%output %1 x", "lést"), ours=True)


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("", "''"),
        ("plain", "'plain'"),
        ('$HOME ~ #{x} ; { } \\ " `é☃`', "'$HOME ~ #{x} ; { } \\ \" `é☃`'"),
        ("it's", "'it'\"'\"'s'"),
        ("two\nlines\n", "'two'\"\\012\"'lines'\"\\012\""),
        ("\r\t\x1b'\x7f", '"\\015\\011\\033\'\\177"'),
    ],
)
def test_quote(argument: str, quoted: str) -> None:
    """Plain text is in single quotes; these and control characters are in double quotes, the latter in octal."""
    assert quote(argument) == quoted


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_quoted_is_one_line(argument: str) -> None:
    """Whatever the argument is, it is written without a control character, and so on one line."""
    assert not any(byte < 0x20 or byte == 0x7F for byte in command_line("set-option", argument)[:-1])


@pytest.mark.parametrize("argument", ["secret\0", "secret\udcff"])
def test_refused_argument(argument: str) -> None:
    """NUL and half surrogates are refused, in words that do not have the argument."""
    with pytest.raises(ValueError, match="tmux") as refusal:
        command_line("set-option", "@x", argument)
    assert "secret" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


@pytest.mark.parametrize("args", [(), ("",), ("A=b",), ("#x",), ("-x",), ("a b",), ("list-panes;",), ("list-panes\n",)])
def test_refused_command(args: tuple[str, ...]) -> None:
    """What tmux would not take for a command, and so not answer, is refused."""
    with pytest.raises(ValueError, match="full name"):
        command_line(*args)


def test_command_line() -> None:
    """A command is one line of UTF-8 with its arguments quoted."""
    assert command_line("set-option", "@x", "é\n") == "set-option '@x' 'é'\"\\012\"\n".encode()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("", ""),
        ("a#b", "a##b"),
        ("#", "##"),
        ("##", "####"),
        ("#{x}#S#(y)", "##{x}##S##(y)"),
        ("#[x]##[y]", "#[x]##[y]"),
        ("#a#[x]#", "##a#[x]##"),
        ("%H%%", "%H%%"),
    ],
)
def test_escape_format(text: str, escaped: str) -> None:
    """Every # is doubled, except those before a bracket."""
    assert escape_format(text) == escaped


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_frame_in_pieces(size: int) -> None:
    """However the bytes are cut, the same replies come out, and what only looks like the end of a frame is its text."""
    parser = FrameParser()
    stream = b"%sessions-changed\n" + FRAME + b"%window-add @1\n" + FRAME
    replies = [reply for start in range(0, len(stream), size) for reply in parser.feed(stream[start : start + size])]
    assert replies == [REPLY, REPLY]


@pytest.mark.parametrize(
    ("stream", "reply"),
    [
        (b"%begin 1 2 0\n%end 1 2 0\n", Reply(ok=True, lines=(), ours=False)),
        (b"%begin 1 2 1\nno such\n%error 1 2 1\n", Reply(ok=False, lines=("no such",), ours=True)),
        (b"%begin 1 2 3\n%end 1 2 1\n%end 1 2 3\n", Reply(ok=True, lines=("%end 1 2 1",), ours=True)),
        (b"%begin 1 2 1\n\xff\r\n%end 1 2 1\n", Reply(ok=True, lines=("\ufffd\r",), ours=True)),
        (
            b"%begin 1 2 1\n%begin 1 3 1\n%exit\n%end 1 2 1\n",
            Reply(ok=True, lines=("%begin 1 3 1", "%exit"), ours=True),
        ),
        (b"junk\n\n%what is this\n%begin 1 2 1\n%end 1 2 1\n", Reply(ok=True, lines=(), ours=True)),
    ],
)
def test_frames(stream: bytes, reply: Reply) -> None:
    """A frame ends at its own stamp, is ours by its last flag, and takes every line in between as text."""
    assert FrameParser().feed(stream) == [reply]


@pytest.mark.parametrize(
    ("stream", "reason"), [(b"%exit\n", ""), (b"%exit server exited\n%begin 1 2 1\n%end 1 2 1\n", "server exited")]
)
def test_exit(stream: bytes, reason: str) -> None:
    """The end of the connection is recognised with its reason, and nothing is taken after it."""
    parser = FrameParser()
    assert parser.exit is None
    assert parser.feed(stream) == []
    assert parser.exit == reason


@pytest.mark.parametrize(
    "stream",
    [
        b"%end 1 2 1\n",
        b"%error 1 2 1\n",
        b"%begin\n",
        b"%begin 1 2\n",
        b"%begin 1 2 x\n",
        b"%begin 1 2 1 4\n",
        b"%" + b"x" * (1 << 20),
        b"%" + b"x" * (1 << 20) + b"\n",
        b"%begin 1 2 1\n" + b"x" * (1 << 20) + b"y",
        b"%begin 1 2 1\n" + (b"x" * ((1 << 20) - 1) + b"\n") * 17,
        b"%begin 1 2 1\n" + b"\n" * (1 << 19),
    ],
    ids=range(11),
)
def test_refused_stream(stream: bytes) -> None:
    """Frames that cannot be, endless lines and endless replies are errors, not hangs."""
    with pytest.raises(ProtocolError, match="tmux sent"):
        FrameParser().feed(stream)
