"""`qwen-edge run`: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_edge.cli.completing import complete_model
from qwen_edge.cli.options import GenerationOptions, generation_options
from qwen_edge.cli.output import format_option, print_json
from qwen_edge.cli.prompt import assemble_prompt
from qwen_edge.cli.stream import ctrl_c_cancels, show_stats, show_stream

_EXAMPLES = """\b
Examples:
  qwen-edge run qwen3-0.6b "Summarise this" -f notes.txt
  git diff | qwen-edge run qwen3-0.6b "Write a commit message for this change"
"""


@click.command(epilog=_EXAMPLES)
@click.argument("file", shell_complete=complete_model)
@click.argument("prompt", required=False)
@click.option(
    "-f",
    "--file",
    "files",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Text file that follows the prompt, under its name; may be given again.",
)
@click.option("--system", help="What the model is told before the prompt.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the answer after this time, with what there is of it; loading the model is not counted.",
)
@generation_options
@format_option
def command(
    file: str,
    prompt: str | None,
    files: tuple[Path, ...],
    system: str | None,
    timeout_s: float | None,
    options: GenerationOptions,
    output_format: str,
) -> None:
    """Answer PROMPT with the model in FILE (a GGUF file, an ONNX folder, a bundle, or a model's name).

    What is piped in follows PROMPT, or is the prompt where there is none. Text is read as UTF-8.
    The answer goes to stdout, thinking and figures to stderr.
    """
    prompt = assemble_prompt(prompt, files)
    from qwen_edge.model import load

    with load(file, options.load, **options.asked) as model, model.session(system=system) as session:
        sampling = options.sampling(session.recommended_sampling(options.thinking, prompt))
        stream = session.stream(
            prompt,
            thinking=options.thinking,
            max_tokens=options.max_tokens,
            sampling=sampling,
            timeout_s=timeout_s,
        )
        with ctrl_c_cancels(session):
            if output_format == "json":
                print_json(stream.finish().to_dict())
            else:
                show_stream(stream)
                show_stats(stream.reply)
