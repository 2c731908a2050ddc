"""Times mean the same in each engine: checked with systemd's own calendar, and day by day."""

import re
import shutil
import subprocess
from datetime import datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.scheduling.times import DAY, FIELDS, WEEKDAY, Times, parse_times

NOW = datetime(2026, 1, 30, 12, 34)
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt-get install systemd"
)


@pytest.mark.parametrize(
    ("text", "cron", "following"),
    [
        ("hourly", "0 * * * *", "2026-01-30 13:00"),
        ("daily 03:00", "0 3 * * *", "2026-01-31 03:00"),
        ("Daily 3:05", "5 3 * * *", "2026-01-31 03:05"),
        ("Mon 03:00", "0 3 * * 1", "2026-02-02 03:00"),
        ("Monday 03:00", "0 3 * * 1", "2026-02-02 03:00"),
        ("Mon,Thu 23:59", "59 23 * * 1,4", "2026-02-02 23:59"),
        ("Mon-Fri 03:00", "0 3 * * 1-5", "2026-02-02 03:00"),
        ("fri-sun 03:00", "0 3 * * 0,5,6", "2026-01-31 03:00"),
        ("1st 03:00", "0 3 1 * *", "2026-02-01 03:00"),
        ("1st,15th 03:00", "0 3 1,15 * *", "2026-02-01 03:00"),
        ("31st 00:00", "0 0 31 * *", "2026-01-31 00:00"),
        ("0 3 * * 7", "0 3 * * 0", "2026-02-01 03:00"),
        ("*/15 8-18/2 * jan,feb *", "*/15 8,10,12,14,16,18 * 1,2 *", "2026-01-30 12:45"),
        ("0 0 29 2 *", "0 0 29 2 *", "2028-02-29 00:00"),
        ("0 3 13 * fri", "0 3 13 * 5", "2026-02-06 03:00"),
    ],
)
def test_what_can_be_written(text: str, cron: str, following: str) -> None:
    times = parse_times(text)
    assert times.as_cron() == cron
    assert parse_times(cron) == times
    assert f"{next(times.after(NOW)):%Y-%m-%d %H:%M}" == following


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither a day with a time of day nor five fields"),
        ("03:00", "neither a day with a time of day nor five fields"),
        ("0 3 * *", "neither a day with a time of day nor five fields"),
        ("Mon 24:00", "24:00 is no time of day"),
        ("Mon 3", "3 is no time of day"),
        ("Mondy 03:00", "mondy is neither daily nor days such as"),
        ("32nd 03:00", "32 is no day of the month, which is 1 to 31"),
        ("30 2 30 2 *", "there is no such day"),
        ("60 * * * *", "60 is no minute, which is 0 to 59"),
        ("* * * 13 *", "13 is no month, which is 1 to 12 or jan to dec"),
        ("* * * * 8", "8 is no day of the week, which is 0 to 6 or sun to sat"),
        ("*/0 * * * *", "the step must be a number from 1"),
        ("5/10 * * * *", "a step needs * or a range before it"),
        ("30-10 * * * *", "runs backwards"),
        ("1,,2 * * * *", "nothing is no minute"),
        ("٣ * * * *", "is no minute"),
        ("0 3 */2 * 1", "list the days"),
    ],
)
def test_what_cannot_says_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_times(text)


def numbers(index: int) -> st.SearchStrategy[frozenset[int]]:
    field = FIELDS[index]
    some = st.frozensets(st.integers(field.low, field.high), min_size=1, max_size=4)
    return st.one_of(st.just(field.numbers), some)


any_times = st.builds(Times, *(numbers(index) for index in range(len(FIELDS))))


@given(any_times)
@settings(deadline=None)
def test_cron_fields_are_read_as_they_were_meant(times: Times) -> None:
    """Also by Kubernetes, which knows neither 7 nor names where it is strict."""
    assert parse_times(times.as_cron()) == times if next(times.after(NOW), None) else True
    assert re.fullmatch(r"(?:[\d,*/-]+ ){4}[0-6,*-]+", times.as_cron())


@given(any_times, st.integers(0, 100_000))
@settings(max_examples=15, deadline=None)
def test_the_next_times_are_found_by_looking_at_every_minute(times: Times, start: int) -> None:
    moment = datetime(2026, 1, 1) + timedelta(minutes=start)
    found = [one for one in islice(times.after(moment), 2) if one <= moment + timedelta(days=5)]
    minutes = (moment.replace(second=0) + timedelta(minutes=number) for number in range(1, 7_201))
    assert found == list(islice(filter(lambda one: is_time(times, one), minutes), 2))


def is_time(times: Times, moment: datetime) -> bool:
    """As crontab(5) says it."""
    day, weekday = moment.day in times.days, moment.isoweekday() % 7 in times.weekdays
    both = times.days != DAY.numbers and times.weekdays != WEEKDAY.numbers
    is_day = (day or weekday) if both else (day and weekday)
    return moment.minute in times.minutes and moment.hour in times.hours and moment.month in times.months and is_day


@needs_systemd
@given(any_times)
@settings(max_examples=30, deadline=None)
def test_systemd_reads_the_same_times(times: Times) -> None:
    events = times.as_systemd()
    command = ["systemd-analyze", "calendar", "--iterations=4", f"--base-time={NOW:%Y-%m-%d %H:%M:%S}", *events]
    done = subprocess.run(command, capture_output=True, text=True, env={"TZ": "UTC", "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    pattern = r"(?:Next elapse|Iter\. #\d+): \w{3} (\S+ \S+) UTC"
    read = sorted({datetime.fromisoformat(found) for found in re.findall(pattern, done.stdout)})
    assert read[:4] == list(islice(times.after(NOW), 4))
