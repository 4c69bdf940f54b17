"""Snakemake logger plugin of prefdag: a live table of stages in a terminal, one line per finished job in a pipe.

Snakemake finds the package by its name, and profiles/default/config.yaml chooses it (`logger: prefdag`). To see
Snakemake's own messages instead, with every input, reason and shell command, use one of

    snakemake --logger-prefdag-plain     Snakemake's own console
    snakemake --printshellcmds (-p)      the same, with the shell commands
    snakemake --verbose                  the same, with debug messages

Snakemake's messages are also in .snakemake/log, and a job's output is in results/<suite>/<stage>/[<name>/]log.txt.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from logging import Handler, LogRecord

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase

from snakemake_logger_plugin_prefdag.config_files import check_config_files


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    plain: bool = field(
        default=False, metadata={"help": "Show Snakemake's own messages.", "env_var": False, "required": False}
    )


class LogHandler(LogHandlerBase):
    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        check_config_files(sys.argv[1:])
        common = self.common_settings
        plain = isinstance(self.settings, LogHandlerSettings) and self.settings.plain
        if plain or common.verbose or common.debug_dag or common.printshellcmds:
            self._handler = _snakemakes_own(common)
        else:
            from snakemake_logger_plugin_prefdag.console import ConsoleHandler

            self._handler = ConsoleHandler(common)

    def emit(self, record: LogRecord) -> None:
        with suppress(BrokenPipeError):  # `snakemake | head`: the workflow goes on
            if self._handler.filter(record):
                self._handler.emit(record)

    def close(self) -> None:
        self._handler.close()
        super().close()


def _snakemakes_own(common) -> Handler:
    from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter

    return ColorizingTextHandler(
        nocolor=common.nocolor,
        stream=sys.stdout if common.stdout else sys.stderr,
        filter=DefaultFilter(common.quiet, common.debug_dag, common.verbose, common.dryrun, common.printshellcmds),
        formatter=DefaultFormatter(common.quiet, common.show_failed_logs),
    )
