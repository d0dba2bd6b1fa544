// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, main: finds the verb, prints help. What a verb does is in the file
 * of its noun.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "standard_files.h"
#include "verbs.h"

static const struct verb verbs[] = {
	{ "attach", verb_attach, "DEVICE [--name NAME] [--metadata DEV] [--granularity SIZE] | --all",
	  "Puts change tracking on a device. A plain unused device becomes /dev/mapper/NAME;\n"
	  "a device-mapper device (LVM, crypt) is converted under its users.\n"
	  "  --name NAME         name of the new device (plain devices only)\n"
	  "  --granularity SIZE  bytes for one bit of the change map, 4K to 16M (default 64K)\n"
	  "  --metadata DEV      checkpoints survive reboots and crashes there; an empty DEV is\n"
	  "                      set up, see also metadata\n"
	  "  --all[=FILE]        all that /etc/fleece/fleecetab, or FILE, lists\n"
	  "  --wait S            with --all: each when its devices are there, up to S seconds\n"
	  "  --early             with --all: only those whose devices are there\n"
	  "  --final             with --all: what is not there may be used, unseen, later\n"
	  "  --root DEV          with --all: but not this plain device, which is to be mounted\n"
	  "  --freeze-timeout S  give up when I/O cannot be held within S seconds (default 10)\n" },
	{ "detach", verb_detach, "NAME | --all",
	  "Undoes attach. Checkpoints are lost, but of a plain device with a metadata device.\n"
	  "  --all[=FILE]        all that /etc/fleece/fleecetab, or FILE, lists\n"
	  "  --freeze-timeout S  give up when I/O cannot be held within S seconds (default 10)\n" },
	{ "checkpoint", verb_checkpoint,
	  "create NAME CHECKPOINT | delete NAME CHECKPOINT | list NAME",
	  "  --json              for programs\n" },
	{ "snapshot", verb_snapshot, "NAME... [OPTION...]",
	  "Takes snapshots of all the named origins at one moment, filesystems frozen.\n"
	  "  --name SNAPSHOT     name of the snapshot's device (default NAME-snap); once for\n"
	  "                      each NAME, in their order\n"
	  "  --cow DEV           COW device; once for each NAME, in their order\n"
	  "  --force             with --cow: whatever data DEV holds\n"
	  "  --cow-size SIZE|N%  make COW space: LVM if the origin is there, else a file or zram\n"
	  "                      (default 20%)\n"
	  "  --cow-kind KIND     lvm, zram or file instead of choosing\n"
	  "  --cow-dir DIR       where the file goes (default /var/tmp)\n"
	  "  --cluster SIZE      unit of copying, 4K to 16M (default 64K)\n"
	  "  --since CP          only what changed since this checkpoint\n"
	  "  --checkpoint CP     create this checkpoint at the same moment\n"
	  "  --on-cbw-error break_snapshot|break_cluster|break_write\n"
	  "                      what a failed copy ends (default break_snapshot)\n"
	  "  --cbw-timeout MS    longest time a live write waits for a copy (default 30000)\n"
	  "  --on-cow-full break|wait  fail, or hold live writes until slots are released\n"
	  "  --low-water N       event when fewer than N clusters are free\n"
	  "  --staging SIZE      RAM for copies on their way (default 32M)\n"
	  "  --release-on-discard  a discard of the snapshot device releases\n"
	  "  --freeze-timeout S  give up when freezing takes longer (default 10)\n"
	  "  --json              for programs\n" },
	{ "remove", verb_remove, "SNAPSHOT...",
	  "Removes snapshots and COW space made for them.\n" },
	{ "grow", verb_grow, "SNAPSHOT SIZE | ORIGIN",
	  "Gives a snapshot more COW space: extends the logical volume made for it, or takes\n"
	  "up what a device named with --cow has gained. SIZE is that of the whole COW device.\n"
	  "An origin takes up what its plain device has gained, live.\n" },
	{ "release", verb_release, "SNAPSHOT OFFSET:LENGTH|all",
	  "Gives up a range of a snapshot; it is not copied any more and cannot be read.\n" },
	{ "list", verb_list, "", "  --json              for programs\n" },
	{ "status", verb_status, "[NAME]", "  --json              for programs\n" },
	{ "wait", verb_wait, "SNAPSHOT --for full=N%|broken",
	  "  --for CONDITION     may be repeated: the first one that comes true ends the wait\n"
	  "  --timeout S         fail after S seconds\n"
	  "  --json              for programs\n" },
	{ "map", verb_map, "SNAPSHOT|NAME [--since CP]",
	  "Extents that changed since the checkpoint (an origin: the newest one unless given;\n"
	  "a snapshot: without --since, what can be read of it).\n"
	  "  --json              for programs\n" },
	{ "serve", verb_serve, "SNAPSHOT... [OPTION...] [-- FLEECED OPTION...]",
	  "Serves snapshots over NBD.\n"
	  "  --socket PATH       Unix socket (default /run/fleece/SNAPSHOT.sock)\n"
	  "  --listen ADDR[:PORT]  TCP as well; may be repeated\n"
	  "  --vsock [CID:]PORT  vsock as well; may be repeated\n"
	  "  --tls-certs DIR     clients need TLS and a certificate, see fleeced(8)\n"
	  "  --tls-psk FILE      clients need TLS and a key, see fleeced(8)\n"
	  "  --insecure          any address without TLS\n"
	  "  --allow-release     also export SNAPSHOT+release\n"
	  "  --read-once         release what has been read\n"
	  "  --background        return once it is served\n"
	  "  --pid-file FILE     of the server (with --background: /run/fleece/SNAPSHOT.pid)\n"
	  "  --log-file FILE     with --background (default /run/fleece/SNAPSHOT.log)\n"
	  "  --json              for programs\n" },
	{ "pull", verb_pull, PULL_SYNOPSIS, "" },
	{ "metadata", verb_metadata,
	  "create DEVICE --origin DEV [OPTION...] | check DEVICE | dump DEVICE",
	  "Makes, checks and shows what keeps checkpoints across reboots; needs no module.\n"
	  "  --origin DEV        create, check: the device that it belongs to\n"
	  "  --origin-size SIZE  create: its size, instead\n"
	  "  --capacity SIZE     create: the largest size it may grow to (default: twice its\n"
	  "                      size, or what there is room for)\n"
	  "  --granularity SIZE  create: as for attach (default 64K)\n"
	  "  --region SIZE       create: what a crash makes count as changed at least (default 4M)\n"
	  "  --checkpoints N     create: room for so many, 1 to 256 (default 64)\n"
	  "  --force             create: whatever DEVICE holds\n"
	  "  --json              dump: for programs\n" },
	{ "check", verb_check, "[--json]",
	  "Checks module, server and command, and looks for leftovers.\n" },
};

static void print_help(FILE *out)
{
	size_t i;

	fputs("usage: fleece VERB [ARGUMENT...]\n\n", out);
	for (i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].synopsis);
	fputs("\n'fleece VERB --help' explains a verb, fleece(8) everything.\n"
	      "Exit status: 0 done, 1 failed, 2 usage, 4 no such device, 5 exists or busy,\n"
	      "6 snapshot broken, 7 no such or invalid checkpoint, 8 module or fleeced\n"
	      "missing or of another version, 9 permission.\n", out);
}

int main(int argc, char **argv)
{
	size_t i;

	/* Who has started us may ignore it; then no child could be waited for. */
	signal(SIGCHLD, SIG_DFL);
	if (fleece_fill_standard_files())
		return FAILED;
	if (argc < 2)
		return verb_usage("no verb");
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		print_help(stdout);
		return verb_end(DONE);
	}
	if (!strcmp(argv[1], "--version")) {
		puts("fleece " FLEECE_VERSION);
		return verb_end(DONE);
	}
	for (i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (strcmp(argv[1], verbs[i].name))
			continue;
		return verb_run(&verbs[i], argc - 1, argv + 1);
	}
	return verb_usage("unknown verb '%s'", argv[1]);
}
