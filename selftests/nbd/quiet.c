// SPDX-License-Identifier: GPL-2.0-only
/* nbd tests: the core's log would drown the output, see --wrap in the Makefile. */

void __wrap_log_info(const char *format, ...)
{
	(void)format;
}

void __wrap_log_error(const char *format, ...)
{
	(void)format;
}
