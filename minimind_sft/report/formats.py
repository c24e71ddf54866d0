"""Formats numbers for people: shares, times, and pairs of values that can be told apart."""

from datetime import UTC, datetime

from minimind_sft.report.curves import Numbers

MAX_DIGITS = 8


def percent(share: float | None) -> str:
    """Formats a share, never rounded up to 100% or down to 0%."""
    if share is None:
        return "-"
    shown = f"{share:.1%}"
    if shown == "100.0%":
        return "100%" if share == 1 else "99.9%"
    return "0.1%" if shown == "0.0%" and share else shown


def number(value: float) -> str:
    """Formats a value with three significant digits, and all digits before the point."""
    return Numbers([value], 3)(value)


def pair(before: float, after: float) -> tuple[str, str]:
    """Formats two values with three significant digits each, or with as many as tell them apart."""
    for digits in range(3, MAX_DIGITS + 1):
        texts = Numbers([before], digits)(before), Numbers([after], digits)(after)
        if before == after or texts[0] != texts[1]:
            break
    return texts


def duration(seconds: float) -> str:
    """Formats a time as 42 s, 2 min 05 s, 13 min or 1 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min"


def moment(text: str) -> str:
    """Formats a time in ISO's form as 2026-05-01 10:00 UTC; one without a time zone is taken for UTC."""
    at = datetime.fromisoformat(text)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return at.strftime("%Y-%m-%d %H:%M UTC")
