"""Sessions of the control room: bounded in number and in time."""

from engine.backoffice.sessions import SESSION_SECONDS_MAX, SESSIONS_MAX, Sessions


def test_a_token_stands_for_its_key_until_it_is_ended() -> None:
    sessions = Sessions()
    token, other = sessions.begin("key"), sessions.begin("key")
    assert token != other
    assert sessions.key_of(token) == "key"
    sessions.end(token)
    sessions.end(token)
    assert sessions.key_of(token) is None
    assert sessions.key_of(other) == "key"
    assert sessions.key_of("") is None


def test_a_session_ends_after_a_working_day() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    token = sessions.begin("key")
    now = SESSION_SECONDS_MAX - 1
    assert sessions.key_of(token) == "key"
    now = SESSION_SECONDS_MAX
    assert sessions.key_of(token) is None


def test_one_session_too_many_ends_the_oldest() -> None:
    sessions = Sessions()
    tokens = [sessions.begin(str(number)) for number in range(SESSIONS_MAX + 1)]
    assert sessions.key_of(tokens[0]) is None
    assert sessions.key_of(tokens[1]) == "1"
    assert sessions.key_of(tokens[-1]) == str(SESSIONS_MAX)
