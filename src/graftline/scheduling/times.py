"""When something is to run: plain words or cron's five fields become sets of numbers, and these each engine's own form.

The sets are what all engines have in common. Where their grammars differ (7 for Sunday, names of days, steps that no
range starts) or mean different things, nothing is left to them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import reduce

WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")  # numbered as in cron
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
EXAMPLES = 'hourly, "daily 03:00", "Mon,Thu 03:00", "1st 03:00", or cron\'s five fields such as "0 3 * * 1"'
LONGEST_GAP_YEARS = 8  # 29 February, across a century that is no leap year

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_DAY_OF_MONTH = re.compile(r"(\d{1,2})(st|nd|rd|th)")


def _with_short(names: Sequence[str], first: int) -> dict[str, int]:
    """Number names from ``first`` on, in small letters, whole and cut to three."""
    return {form: first + number for number, name in enumerate(names) for form in (name.lower(), name[:3].lower())}


@dataclass(frozen=True)
class CronField:
    """One of cron's five fields: its name, its smallest and largest number, and names for its numbers."""

    name: str
    low: int
    high: int
    names: Mapping[str, int]

    @property
    def numbers(self) -> frozenset[int]:
        """All numbers that the field can have."""
        return frozenset(range(self.low, self.high + 1))


MINUTE = CronField("minute", 0, 59, {})
HOUR = CronField("hour", 0, 23, {})
DAY = CronField("day of the month", 1, 31, {})
MONTH = CronField("month", 1, 12, _with_short(MONTHS, 1))
WEEKDAY = CronField("day of the week", 0, 6, _with_short(WEEKDAYS, 0))
FIELDS = (MINUTE, HOUR, DAY, MONTH, WEEKDAY)


@dataclass(frozen=True)
class Times:
    """The minutes at which something runs, in local time.

    Attributes:
        minutes: of the hour.
        hours: of the day.
        days: of the month, from 1.
        months: from 1.
        weekdays: 0 for Sunday to 6. Where both these and ``days`` leave some out, either is enough, as in cron.
    """

    minutes: frozenset[int] = frozenset({0})
    hours: frozenset[int] = frozenset({0})
    days: frozenset[int] = DAY.numbers
    months: frozenset[int] = MONTH.numbers
    weekdays: frozenset[int] = WEEKDAY.numbers

    @property
    def sets(self) -> tuple[frozenset[int], ...]:
        """The numbers of cron's five fields, in its order."""
        return (self.minutes, self.hours, self.days, self.months, self.weekdays)

    @property
    def is_either_day(self) -> bool:
        """Whether a day of the month or a day of the week is enough, each of which leaves some out."""
        return self.days != DAY.numbers and self.weekdays != WEEKDAY.numbers

    def as_cron(self) -> str:
        """Return cron's five fields, in numbers that cron, Kubernetes and Dagster all take.

        >>> parse_times("Sun,Mon 03:00").as_cron(), parse_times("*/15 8-18 * * mon-fri").as_cron()
        ('0 3 * * 0,1', '*/15 8-18 * * 1-5')
        """
        return " ".join(_cron_field(found, field) for found, field in zip(self.sets, FIELDS, strict=True))

    def as_systemd(self) -> list[str]:
        """Return systemd's calendar events; two where either of two kinds of day is enough, which it has no sign for.

        >>> parse_times("Mon-Wed 03:00").as_systemd(), parse_times("0 3 13 * 5").as_systemd()
        (['Mon,Tue,Wed *-*-* 03:00:00'], ['*-*-13 03:00:00', 'Fri *-*-* 03:00:00'])
        """
        by_day = _systemd_event(self.weekdays, self.days, self)
        if not self.is_either_day:
            return [by_day]
        return [_systemd_event(WEEKDAY.numbers, self.days, self), _systemd_event(self.weekdays, DAY.numbers, self)]

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the times after a moment, in order; none if there is no such day.

        >>> next(parse_times("1st 03:00").after(datetime(2026, 2, 1, 3, 0)))
        datetime.datetime(2026, 3, 1, 3, 0)
        """
        clocks = [time(hour, minute) for hour in sorted(self.hours) for minute in sorted(self.minutes)]
        day, last = moment.date(), moment.date() + timedelta(days=366 * LONGEST_GAP_YEARS)
        while day <= last:
            if self._is_day(day):
                for clock in clocks:
                    if (found := datetime.combine(day, clock)) > moment:
                        yield found
                        last = day + timedelta(days=366 * LONGEST_GAP_YEARS)
            day += timedelta(days=1)

    def _is_day(self, day: date) -> bool:
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (of_month or of_week if self.is_either_day else of_month and of_week)


def parse_times(text: str) -> Times:
    """Read when something is to run.

    >>> parse_times("daily 03:30").as_cron(), parse_times("1st,15th 3:00").as_cron(), parse_times("hourly").as_cron()
    ('30 3 * * *', '0 3 1,15 * *', '0 * * * *')

    Raises:
        ValueError: says what is wrong, without a full stop.
    """
    words = text.lower().split()
    if len(words) == len(FIELDS):
        times = _parse_fields(words)
    elif words == ["hourly"]:
        times = Times(hours=HOUR.numbers)
    elif len(words) == 2:
        times = _parse_plain(*words)
    else:
        raise ValueError("it is neither a day with a time of day nor five fields")
    if next(times.after(datetime(2001, 1, 1)), None) is None:
        raise ValueError("there is no such day in any year")
    return times


def _parse_plain(days: str, clock: str) -> Times:
    match = _CLOCK.fullmatch(clock)
    if match is None or int(match[1]) > HOUR.high or int(match[2]) > MINUTE.high:
        raise ValueError(f"{clock} is no time of day from 00:00 to 23:59")
    minutes, hours = frozenset({int(match[2])}), frozenset({int(match[1])})
    if days == "daily":
        return Times(minutes, hours)
    parts = days.split(",")
    if all(_DAY_OF_MONTH.fullmatch(part) for part in parts):
        numbers = [_number(re.sub(r"\D", "", part), DAY) for part in parts]
        return Times(minutes, hours, days=frozenset(numbers))
    if any(name not in WEEKDAY.names for name in re.split("[,-]", days)):
        raise ValueError(f"{days} is neither daily nor days such as Mon,Thu or 1st,15th")
    return Times(minutes, hours, weekdays=_union(parts, WEEKDAY))


def _parse_fields(words: Sequence[str]) -> Times:
    times = Times(*(_union(word.split(","), field) for word, field in zip(words, FIELDS, strict=True)))
    if times.is_either_day and (words[2].startswith("*") or words[4].startswith("*")):
        raise ValueError(
            "a step of days beside days of the other kind means both in cron and either in Kubernetes: list the days"
        )
    return times


def _union(parts: Sequence[str], field: CronField) -> frozenset[int]:
    return reduce(frozenset[int].union, (_part(part, field) for part in parts), frozenset[int]())


def _part(text: str, field: CronField) -> frozenset[int]:
    """Return the numbers of a part of a field: ``*``, ``5``, ``1-5``, ``*/2``, ``10-50/20``."""
    span, slash, step = text.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step)):
        raise ValueError(f"{text} as {field.name}: the step must be a number from 1")
    first, dash, last = span.partition("-")
    if span == "*":
        low, high = field.low, field.high
    elif slash and not dash:
        raise ValueError(f"{text} as {field.name}: a step needs * or a range before it")
    else:
        low = _number(first, field)
        high = _number(last, field) if dash else low
        if field is WEEKDAY and dash and high == 0:  # fri-sun
            high = 7
    if low > high:
        raise ValueError(f"{text} as {field.name} runs backwards")
    numbers = range(low, high + 1, int(step) if slash else 1)
    return frozenset(number % 7 if field is WEEKDAY else number for number in numbers)


def _number(text: str, field: CronField) -> int:
    """Return the number that a word stands for; 7 is Sunday too."""
    number = field.names.get(text)
    if number is None and text.isascii() and text.isdigit():
        number = 0 if field is WEEKDAY and int(text) == 7 else int(text)
    if number is None or number not in field.numbers:
        names = list(field.names)[1::2]  # those of three letters
        also = f" or {names[0]} to {names[-1]}" if names else ""
        raise ValueError(f"{text or 'nothing'} is no {field.name}, which is {field.low} to {field.high}{also}")
    return number


def _cron_field(numbers: frozenset[int], field: CronField) -> str:
    if numbers == field.numbers:
        return "*"
    found = sorted(numbers)
    step = found[1] - found[0] if len(found) > 2 else 0
    if step > 1 and found == list(range(field.low, field.high + 1, step)) and field in (MINUTE, HOUR, MONTH):
        return f"*/{step}"
    if len(found) > 2 and found[-1] - found[0] == len(found) - 1:
        return f"{found[0]}-{found[-1]}"
    return ",".join(map(str, found))


def _systemd_event(weekdays: frozenset[int], days: frozenset[int], times: Times) -> str:
    names = ",".join(WEEKDAYS[number][:3] for number in sorted(weekdays))
    date_part = f"*-{_systemd_field(times.months, MONTH)}-{_systemd_field(days, DAY)}"
    clock = f"{_systemd_field(times.hours, HOUR)}:{_systemd_field(times.minutes, MINUTE)}:00"
    return f"{names} {date_part} {clock}" if weekdays != WEEKDAY.numbers else f"{date_part} {clock}"


def _systemd_field(numbers: frozenset[int], field: CronField) -> str:
    return "*" if numbers == field.numbers else ",".join(f"{number:02}" for number in sorted(numbers))
