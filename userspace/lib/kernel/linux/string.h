/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* string: for sources shared with the module, the one of the C library. */
#ifndef FLEECE_LIB_LINUX_STRING_H
#define FLEECE_LIB_LINUX_STRING_H

#include <string.h>

#endif
