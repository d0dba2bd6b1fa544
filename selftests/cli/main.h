/* SPDX-License-Identifier: GPL-2.0-only */
/* cli tests, main: the command's main() as it is called in a test. */
#ifndef FLEECE_CLI_MAIN_H
#define FLEECE_CLI_MAIN_H

/**
 * fleece_main() - main() of the command
 * @argc: number of arguments.
 * @argv: the arguments.
 *
 * Return: the exit status.
 */
int fleece_main(int argc, char **argv);

#endif
