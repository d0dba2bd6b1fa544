/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * control: /dev/fleece-control, the ioctls of uapi/linux/dm-fleece.h.
 */
#ifndef FLEECE_CONTROL_H
#define FLEECE_CONTROL_H

#define FLEECE_MODULE_VERSION	"0.1"

/**
 * fleece_control_init() - make the node
 *
 * Return: 0 or a negative errno.
 */
int fleece_control_init(void);

/**
 * fleece_control_exit() - remove the node
 */
void fleece_control_exit(void);

#endif
