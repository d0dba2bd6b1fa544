/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* build_bug: for sources shared with the module, static_assert(). */
#ifndef FLEECE_LIB_LINUX_BUILD_BUG_H
#define FLEECE_LIB_LINUX_BUILD_BUG_H

#undef static_assert
#define static_assert(condition)	_Static_assert(condition, #condition)

#endif
