"""Checking a bundle on the device: its files, and whether this machine runs it as the bundle says. No network is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_edge.bundle.applying import tuning_of
from qwen_edge.bundle.describing import build_here
from qwen_edge.bundle.facts import chat_of, read_facts
from qwen_edge.bundle.file_checks import Say, check_files
from qwen_edge.bundle.lockfile import lock_differences
from qwen_edge.bundle.record import LOCK_NAME, TEMPLATE_NAME, Bundle, BundleMachine
from qwen_edge.bundle.report import BundleReport, Finding, Group, Status
from qwen_edge.bundle.speed import measure_speed
from qwen_edge.config import LoadConfig
from qwen_edge.errors import QwenEdgeError
from qwen_edge.memory_plan import plan_memory
from qwen_edge.tuned import Settings, Workload

DEFAULT_TOLERANCE = 0.3


def check_bundle(
    folder: Path,
    *,
    measures_speed: bool = True,
    tolerance: float = DEFAULT_TOLERANCE,
    say: Say = lambda name: None,
) -> BundleReport:
    """Tell what of a bundle has drifted, here and now.

    Args:
        folder: The bundle.
        measures_speed: Run the model where its speed on this machine is known.
        tolerance: It may be slower by this share.
        say: Called with what is looked at next.

    Raises:
        ModelNotFoundError: It is no bundle.
        UnsupportedError: It was made by another version of qwen-edge, in another form.
        OSError: It cannot be read.
    """
    bundle, findings = check_files(folder, say)
    if bundle is None:
        return BundleReport(folder=folder, findings=tuple(findings))
    changed = {finding.file for finding in findings if finding.status == "drift"}
    is_onnx = bundle.model.format == "onnx"
    model = folder if is_onnx else folder / bundle.model.file
    findings.append(_check_build(bundle))
    if LOCK_NAME not in changed:
        findings += _check_packages(folder)
    if changed & ({record.name for record in bundle.files} if is_onnx else {bundle.model.file}):
        return BundleReport(folder=folder, findings=tuple(findings))
    if TEMPLATE_NAME not in changed:
        findings.append(_check_template(folder, model, bundle))
    memory = _check_memory(model, bundle)
    findings.append(memory)
    runs = "drift" not in (memory.status, next(each.status for each in findings if each.group == "build"))
    findings.append(_check_speed(model, bundle, tolerance, say, measures=measures_speed and runs))
    return BundleReport(folder=folder, findings=tuple(findings))


def _finding(group: Group, status: Status, text: str, expected: object = "", found: object = "") -> Finding:
    return Finding(group=group, status=status, text=text, expected=str(expected), found=str(found))


def _check_build(bundle: Bundle) -> Finding:
    made, here = bundle.build, build_here(is_gguf=bundle.model.format == "gguf")
    if here.version is None:
        hint = "qwen-edge setup" if bundle.model.format == "gguf" else 'pip install "qwen-edge[onnx]"'
        text = f"{here.engine} is not here, and the model needs it. Bring it with: {hint}"
        return _finding("build", "drift", text, made.version or "", "none")
    if here == made:
        return _finding(
            "build", "ok", f"{here.engine} {here.version}, the same build as where the bundle was made"
        )
    if here.version != made.version:
        text = f"{here.engine} {here.version} here, {made.version or 'none'} where the bundle was made"
        return _finding("build", "note", text, made.version or "", here.version)
    text = f"{here.engine} {here.version} as where the bundle was made, in another build: answers may round differently"
    return _finding("build", "note", text, made.key or "", here.key or "")


def _check_packages(folder: Path) -> Iterator[Finding]:
    differences = lock_differences((folder / LOCK_NAME).read_text(encoding="utf-8", errors="replace"))
    if not differences:
        yield _finding("packages", "ok", "the packages that were locked")
    for difference in differences:
        yield _finding("packages", "note", difference)


def _check_template(folder: Path, model: Path, bundle: Bundle) -> Finding:
    if bundle.chat.template is None:
        return _finding("template", "note", "the model has no chat template; plain ChatML is used")
    try:
        facts = read_facts(model)
        chat = chat_of(facts)
    except QwenEdgeError as error:
        return _finding("template", "drift", error.message)
    # As bytes: line ends are part of it.
    if (folder / TEMPLATE_NAME).read_bytes() != facts.chat_template.encode():
        return _finding("template", "drift", f"{TEMPLATE_NAME} is not the template in {bundle.model.file}")
    if bundle.chat.golden_sha256 is None:
        return _finding("template", "note", "renders; it writes today's date, so it cannot be compared")
    if chat.golden_sha256 != bundle.chat.golden_sha256:
        return _finding(
            "template",
            "drift",
            "renders the fixed conversations otherwise than where the bundle was made (another jinja2?)",
            bundle.chat.golden_sha256,
            chat.golden_sha256,
        )
    return _finding("template", "ok", "renders as where the bundle was made")


def _check_memory(model: Path, bundle: Bundle) -> Finding:
    n_ctx = bundle.load.n_ctx
    try:
        plan = plan_memory(str(model), bundle.load.config())
    except QwenEdgeError as error:
        return _finding("memory", "drift", error.message)
    need, free = plan.need.wanted_bytes, plan.free.available_bytes
    largest = f"the largest context that fits is {plan.largest_n_ctx:,} tokens"
    if plan.fits:
        text = f"{need / 1e9:.2f} GB for {n_ctx:,} tokens of context, {free / 1e9:.2f} GB are free; {largest}"
        return _finding("memory", "ok", text)
    text = f"{need / 1e9:.2f} GB for {n_ctx:,} tokens of context do not fit: {free / 1e9:.2f} GB are free"
    ways = f"{largest}: --n-ctx {plan.largest_n_ctx}" if plan.largest_n_ctx else plan.advice
    return _finding("memory", "drift", f"{text}; {ways}", need, free)


def _check_speed(model: Path, bundle: Bundle, tolerance: float, say: Say, *, measures: bool) -> Finding:
    expected = bundle.speed
    if expected is None:
        text = (
            "not known: the bundle was made without measuring (qwen-edge bundle --measure, or tune before it)"
        )
        return _finding("speed", "note", text)
    here = BundleMachine.here()
    figures = (
        f"{expected.prefill_tokens_per_s:,.0f} tokens/s reading, {expected.decode_tokens_per_s:,.1f} writing"
    )
    if here != bundle.machine:
        made = bundle.machine
        text = f"measured on another machine: {figures} on {made.cpu_name or made.architecture}, {made.usable_cores} cores"
        return _finding("speed", "note", text, made.cpu_name, here.cpu_name)
    if not measures:
        return _finding("speed", "note", f"not measured now; {figures} were measured on this machine")
    say("speed")
    try:
        settings = Settings(**expected.settings)
        settings.config(LoadConfig())
        record = tuning_of(bundle)
        workload = record.workload if record is not None else Workload()
        found = measure_speed(model, settings, workload)
    except TypeError as error:
        return _finding("speed", "drift", f"its settings cannot be: {error}")
    except QwenEdgeError as error:
        return _finding("speed", "drift", error.message)
    pairs = (
        ("reading", expected.prefill_tokens_per_s, found.prefill_tokens_per_s),
        ("writing", expected.decode_tokens_per_s, found.decode_tokens_per_s),
    )
    words = ", ".join(f"{what} {now:,.1f} tokens/s (expected {then:,.1f})" for what, then, now in pairs)
    is_slow = any(now < (1 - tolerance) * then for _, then, now in pairs)
    text = f"{words}; up to {tolerance:.0%} slower is allowed"
    then, now = ("/".join(f"{pair[index]:.1f}" for pair in pairs) for index in (1, 2))
    return _finding("speed", "drift" if is_slow else "ok", text, then, now)
