// SPDX-License-Identifier: GPL-2.0-only
/*
 * mistakes: a module that makes one mistake, which its parameter names, when it is
 * loaded, and does not stay. `check` sees whether the kernels that check themselves
 * notice, and whether the VM runner does.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>

/* The counter of a race is changed for so long. */
#define RACE_SECONDS	10

static char *mistake = "";
module_param(mistake, charp, 0);
MODULE_PARM_DESC(mistake, "which one to make");

static unsigned int hang_seconds = 30;
module_param(hang_seconds, uint, 0);
MODULE_PARM_DESC(hang_seconds, "how long a hung task sleeps");

static void use_after_free(void)
{
	char *memory = kzalloc(64, GFP_KERNEL);

	kfree(memory);
	if (memory)
		WRITE_ONCE(*memory, 1);
}

static void leak_memory(void)
{
	void *memory = kzalloc(64, GFP_KERNEL);

	/* So that the compiler does not know that nobody uses it. */
	OPTIMIZER_HIDE_VAR(memory);
}

static void sleep_in_atomic(void)
{
	DEFINE_SPINLOCK(lock);

	spin_lock(&lock);
	might_sleep();
	spin_unlock(&lock);
}

static void shift_too_far(void)
{
	unsigned int count = 40;
	int value = 1;

	OPTIMIZER_HIDE_VAR(count);
	value <<= count;
	OPTIMIZER_HIDE_VAR(value);
}

static void do_nothing(struct timer_list *timer)
{
}

static void free_active_object(void)
{
	struct timer_list *timer = kzalloc(sizeof(*timer), GFP_KERNEL);

	if (!timer)
		return;
	timer_setup(timer, do_nothing, 0);
	mod_timer(timer, jiffies + 3600 * HZ);
	kfree(timer);
}

static void read_without_rcu(void)
{
	static int __rcu *pointer;
	int *value = rcu_dereference(pointer);

	OPTIMIZER_HIDE_VAR(value);
}

static void lock_in_both_orders(void)
{
	static DEFINE_MUTEX(one);
	static DEFINE_MUTEX(other);

	mutex_lock(&one);
	mutex_lock(&other);
	mutex_unlock(&other);
	mutex_unlock(&one);
	mutex_lock(&other);
	mutex_lock(&one);
	mutex_unlock(&one);
	mutex_unlock(&other);
}

static void hang(void)
{
	schedule_timeout_uninterruptible(hang_seconds * HZ);
}

static void warn(void)
{
	WARN_ON(1);
}

static unsigned long counter;

static int count_without_lock(void *unused)
{
	unsigned long end = jiffies + RACE_SECONDS * HZ;

	while (time_before(jiffies, end)) {
		counter++;
		/* In memory, each time. */
		barrier();
	}
	/* Until it is stopped. */
	while (!kthread_should_stop())
		msleep(20);
	return 0;
}

static void race(void)
{
	struct task_struct *task = kthread_run(count_without_lock, NULL, "mistakes");
	unsigned long end = jiffies + RACE_SECONDS * HZ;

	if (IS_ERR(task))
		return;
	while (time_before(jiffies, end)) {
		counter++;
		/* In memory, each time. */
		barrier();
	}
	kthread_stop(task);
}

static const struct {
	const char *name;
	void (*make)(void);
} mistakes[] = {
	{ "use_after_free", use_after_free },
	{ "leak_memory", leak_memory },
	{ "sleep_in_atomic", sleep_in_atomic },
	{ "shift_too_far", shift_too_far },
	{ "free_active_object", free_active_object },
	{ "read_without_rcu", read_without_rcu },
	{ "lock_in_both_orders", lock_in_both_orders },
	{ "hang", hang },
	{ "warn", warn },
	{ "race", race },
};

static int __init mistakes_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(mistakes); i++) {
		if (!strcmp(mistakes[i].name, mistake)) {
			mistakes[i].make();
			return -ECANCELED;
		}
	}
	return -EINVAL;
}

static void __exit mistakes_exit(void)
{
}

module_init(mistakes_init);
module_exit(mistakes_exit);
MODULE_DESCRIPTION("Mistakes that a kernel which checks itself must notice");
MODULE_LICENSE("GPL");
