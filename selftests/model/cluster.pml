// SPDX-License-Identifier: GPL-2.0-only
/*
 * cluster: one cluster X of a snapshot, seen by one reader, two live writes, its
 * copy, releases, a break, and by other clusters that use the same slots. Follows
 * the tables and the ordering argument at the top of drivers/cbw.h; read that first.
 * It owns no code of the module: who changes the protocol there changes it here.
 *
 * Claimed, as assertions and as the absence of a dead end:
 *   - data that the reader accepts is that of the point in time;
 *   - the reader is refused only a cluster that was released, or a broken snapshot;
 *   - a slot has one owner, and is given back once;
 *   - each live write goes on.
 *
 * Memory: what is set by a plain store and read without the lock may stay unseen
 * by others for any time: *_seen follows the variable when drain() pleases. A full
 * barrier waits for that, and so does who takes the lock next. The one who stored
 * it sees it at once. What falls by a fully ordered atomic operation is seen at
 * once, unless BUG_WEAK_CLEAR says that it is an ordinary store.
 *
 * What is done under the lock is one atomic step: who looks without the lock sees
 * nothing of it but the bits, each of which changes once in a step. So a barrier
 * at the end of a locked section stands behind it.
 *
 * Each BUG_* takes one precaution away. SLOTS is 1 or 2.
 */
#ifndef SLOTS
#define SLOTS 2
#endif

mtype = { OLD, NEW, OTHER, GARBAGE };			/* contents */
mtype = { FREE, TAKEN_X, TAKEN_Y, OWNED_X, OWNED_Y };	/* slots */
mtype = { RUNNING, WAITING, OF_COPY, OF_RELEASE, OF_BREAK, RESUMED };	/* live writes */

mtype origin = OLD;
mtype content[SLOTS] = GARBAGE;
mtype slot[SLOTS] = FREE;

/* X: the bits, its copy in flight and the slot and buffer of that. */
bool access = true, access_seen = true;
bool done, done_seen;
bool in_flight, start_copy;
bool staged;
byte x_slot;
mtype buffer = GARBAGE;
byte buffer_refs;

/* The cluster Y of the moment: whichever other one has something to do with slots. */
bool y_access, y_in_flight;

bool broken, broken_seen;
bool want_break;
mtype writer[2] = RUNNING;
bool has_begun;

/* The lock can be had: its last holder's stores are seen. */
#define LOCK	(done_seen == done && broken_seen == broken && access_seen == access)

/* (A) */
#ifdef BUG_NO_BARRIER_A
#define BARRIER	true
#else
#define BARRIER	(done_seen == done && broken_seen == broken)
#endif

inline take_waiters(list)
{
	if :: writer[0] == WAITING -> writer[0] = list :: else fi;
	if :: writer[1] == WAITING -> writer[1] = list :: else fi
}

inline resume_waiters(list)
{
	d_step {
		if :: writer[0] == list -> writer[0] = RESUMED :: else fi;
		if :: writer[1] == list -> writer[1] = RESUMED :: else fi
	}
}

/* Lowest first; SLOTS if none is free. */
inline alloc_slot(which, state)
{
	which = 0;
	do
	:: which < SLOTS && slot[which] != FREE -> which++
	:: else -> break
	od;
	if
	:: which < SLOTS -> slot[which] = state
	:: else
	fi
}

/* Give back the slot in a state, if there is one. */
inline free_in_state(state)
{
	if
	:: slot[0] == state -> slot[0] = FREE
	:: slot[0] != state && slot[SLOTS - 1] == state -> slot[SLOTS - 1] = FREE
	:: else
	fi
}

inline put_buffer()
{
	buffer_refs--;
	if :: !buffer_refs -> buffer = GARBAGE :: else fi
}

active proctype drain()
{
end:	do
	:: atomic { done_seen != done -> done_seen = done }
	:: atomic { broken_seen != broken -> broken_seen = broken }
	:: atomic { access_seen != access -> access_seen = access }
	od
}

/* Enter the list of waiters; start the copy if it is missing. With the lock. */
inline park(me)
{
	if
	:: !in_flight ->
		alloc_slot(x_slot, TAKEN_X);
		if
		:: x_slot < SLOTS -> in_flight = true; buffer_refs = 1; start_copy = true
		:: else -> x_slot = 0; want_break = true
		fi
	:: else
	fi;
	writer[me] = WAITING
}

/*
 * A live write to X. Once it was resumed it runs where the bit was set, so it sees
 * that at once.
 */
proctype live_write(byte me)
{
	/* Two of the same kind: the one that acts first is called 0. */
	me == 0 || has_begun;
	do
	:: atomic {
		writer[me] == RUNNING && (broken_seen || !access_seen || done_seen) ->
		has_begun = true;
		break
	   }
	:: writer[me] == RESUMED && (broken || !access || done) -> break
	:: atomic {
		LOCK && (writer[me] == RUNNING || writer[me] == RESUMED) &&
			!broken && access && !done ->
		has_begun = true;
		park(me)
	   }
	od;
	origin = NEW		/* the device performs it, at any time */
}

/* Where the old data is, or will not be needed: publish it and let the writes go. */
#ifdef BUG_DONE_AFTER_RESUME
#define SET_DONE	skip
#else
#define SET_DONE	done = true
#endif

inline publish()
{
#ifdef BUG_DONE_AFTER_RESUME
	resume_waiters(OF_COPY);
	atomic { LOCK -> done = true };
#endif
	BARRIER;
#ifndef BUG_DONE_WITHOUT_RESUME
	resume_waiters(OF_COPY)
#endif
}

active proctype copy()
{
	bool is_stored;

end:	start_copy;
	buffer = origin;	/* the device reads, at any time */

	atomic {
		LOCK;
		if
		:: !broken -> staged = true; SET_DONE; take_waiters(OF_COPY)
		:: true		/* beyond the staging budget */
		fi
	};
	if
	:: staged -> publish()
	:: else
	fi;

	if
	:: atomic { !broken_seen && access_seen -> is_stored = true };
		content[x_slot] = buffer	/* the device writes, at any time */
	:: broken_seen || !access_seen
	fi;

#ifdef BUG_LEAVES_TABLE_FIRST
	atomic { LOCK -> in_flight = false };
#endif
	atomic {
		LOCK;
		is_stored = is_stored && !broken;
		if
		:: is_stored -> SET_DONE
		:: else
		fi;
		if
		:: is_stored && access ->
			assert(slot[x_slot] == TAKEN_X);
			slot[x_slot] = OWNED_X
		:: else ->
#ifndef BUG_RELEASE_FREES_TAKEN
			assert(slot[x_slot] == TAKEN_X);
			slot[x_slot] = FREE
#else
			skip
#endif
		fi;
		in_flight = false;
		take_waiters(OF_COPY)
	};
	publish();
	atomic { is_stored = false; put_buffer() }
}

/* The copies of other clusters, one after the other. */
active proctype other_copies()
{
	byte s;

end:	do
	:: atomic {
		LOCK && !y_access && !broken ->
		alloc_slot(s, TAKEN_Y);
		if
		:: s == SLOTS -> s = 0; want_break = true; break
		:: else -> y_access = true; y_in_flight = true
		fi
	   };
		if
		:: !broken_seen && y_access -> content[s] = OTHER	/* at any time */
		:: broken_seen || !y_access
		fi;
		atomic {
			LOCK;
			if
			:: !broken && y_access ->
				assert(slot[s] == TAKEN_Y);
				slot[s] = OWNED_Y
			:: else ->
#ifndef BUG_RELEASE_FREES_TAKEN
				assert(slot[s] == TAKEN_Y);
				slot[s] = FREE
#else
				skip
#endif
			fi;
			y_in_flight = false;
			s = 0
		}
	od
}

active proctype release_x()
{
#ifdef BUG_FREED_BEFORE_ACCESS_FALLS
	atomic {
		LOCK;
		if :: !in_flight -> free_in_state(OWNED_X) :: else fi
	};
#endif
	atomic {
		LOCK;
		access = false;
#ifndef BUG_WEAK_CLEAR
		access_seen = false;
#endif
		if
		:: in_flight ->
			take_waiters(OF_RELEASE);
#ifdef BUG_RELEASE_FREES_TAKEN
			free_in_state(TAKEN_X)
#endif
		:: else -> free_in_state(OWNED_X)
		fi
	};
	resume_waiters(OF_RELEASE)
}

active proctype release_y()
{
end:	do
	:: atomic {
		LOCK && y_access ->
		y_access = false;
		if
		:: !y_in_flight -> free_in_state(OWNED_Y)
#ifdef BUG_RELEASE_FREES_TAKEN
		:: else -> free_in_state(TAKEN_Y)
#else
		:: else
#endif
		fi
	   }
	od
}

/* At any time by itself, or never unless a slot was missing. */
active proctype break_snapshot()
{
	if
	:: true
	:: true ->
end:		want_break
	fi;
#ifdef BUG_BREAK_AFTER_RESUME
	atomic { LOCK; take_waiters(OF_BREAK) };
	resume_waiters(OF_BREAK);
	atomic { LOCK -> broken = true };
#endif
	atomic {
		LOCK;
		broken = true;
		take_waiters(OF_BREAK)
	};
	BARRIER;
	resume_waiters(OF_BREAK)
}

/* The reader of X. Once is enough: it may come at any time. */
active proctype read()
{
	mtype data = GARBAGE;
	byte s;

again:	if
	:: broken_seen -> goto lost
	:: !broken_seen
	fi;
	if
	:: !access_seen -> goto denied
	:: access_seen
	fi;
	if
	:: !done_seen -> goto from_origin
	:: done_seen
	fi;

	atomic {
		LOCK;
#ifndef BUG_STAGED_WITHOUT_ACCESS
		/* Else the copy may have read what was written after the release. */
		if
		:: !access -> goto denied
		:: else
		fi;
#endif
		if
		:: in_flight ->
#ifndef BUG_NO_REFERENCE
			buffer_refs++;
#endif
			goto from_buffer
		:: !in_flight && slot[0] == OWNED_X -> s = 0
		:: !in_flight && slot[0] != OWNED_X && slot[SLOTS - 1] == OWNED_X -> s = SLOTS - 1
		:: else -> goto lost
		fi
	};

#ifdef BUG_RECHECK_OF_SLOT_TOO_EARLY
	if :: broken_seen || !access_seen -> goto again :: else fi;
#endif
	data = content[s];
#if !defined(BUG_NO_RECHECK_OF_SLOT) && !defined(BUG_RECHECK_OF_SLOT_TOO_EARLY)
	/* (B) */
	if
	:: broken_seen -> goto again
	:: !broken_seen
	fi;
	if
	:: !access_seen -> goto again
	:: access_seen
	fi;
#endif
	goto accept;

from_origin:
#ifndef BUG_NO_BARRIER_B
	data = origin;
#endif
	/* (B) */
#ifndef BUG_NO_RECHECK_OF_ORIGIN
	if
	:: broken_seen -> goto again
	:: !broken_seen
	fi;
	if
	:: !access_seen -> goto again
	:: access_seen
	fi;
	if
	:: done_seen -> goto again
	:: !done_seen
	fi;
#endif
#ifdef BUG_NO_BARRIER_B
	data = origin;
#endif
	goto accept;

from_buffer:
	data = buffer;
#ifndef BUG_NO_REFERENCE
	atomic { put_buffer() };
#endif

accept:	assert(data == OLD);
	goto over;
lost:	assert(broken || !access);
	goto over;
denied:	assert(!access);
over:	skip
}

init
{
	atomic {
		run live_write(0);
		run live_write(1)
	}
}
