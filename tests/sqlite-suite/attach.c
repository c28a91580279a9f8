/* Linked into SQLite's testfixture. Loads the engine named by SYNDDB_SUITE_LIBRARY, if any, and has
** it told of every connection that opens, of every moment a script calls in, and of the end. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "sqlite3.h"

typedef int (*entry_fn)(sqlite3 *, char **, const void *);
typedef void (*between_fn)(sqlite3 *, const char *);
typedef void (*closing_fn)(sqlite3 *);

static between_fn between_calls;
static closing_fn closing;
static entry_fn entry;

/* SQLITE_EXTRA_INIT: at the end of each sqlite3_initialize. sqlite3_shutdown forgets the entry. */
int synddb_suite_init(const char *unused) {
  static int loaded;
  (void)unused;
  if (!loaded) {
    const char *path = getenv("SYNDDB_SUITE_LIBRARY");
    loaded = 1;
    if (path != NULL) {
      void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
      if (library != NULL) {
        entry = (entry_fn)dlsym(library, "synddb_suite_entry");
        between_calls = (between_fn)dlsym(library, "synddb_suite_between_calls");
        closing = (closing_fn)dlsym(library, "synddb_suite_closing");
      }
      if (entry == NULL) {
        fprintf(stderr, "synddb_suite: %s\n", dlerror());
        exit(70);
      }
    }
  }
  return entry != NULL ? sqlite3_auto_extension((void (*)(void))entry) : SQLITE_OK;
}

/* The calls below come from the scripts' Tcl commands only: the linker wraps what other files call,
** not what SQLite's own file calls in itself. */
#define BETWEEN(db, sql) do { if (between_calls != NULL) between_calls(db, sql); } while (0)
#define CLOSING(db) do { if (closing != NULL) closing(db); } while (0)

int __real_sqlite3_prepare(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int __wrap_sqlite3_prepare(sqlite3 *db, const char *sql, int len, sqlite3_stmt **out, const char **tail) {
  BETWEEN(db, sql);
  return __real_sqlite3_prepare(db, sql, len, out, tail);
}

int __real_sqlite3_prepare_v2(sqlite3 *, const char *, int, sqlite3_stmt **, const char **);
int __wrap_sqlite3_prepare_v2(sqlite3 *db, const char *sql, int len, sqlite3_stmt **out, const char **tail) {
  BETWEEN(db, sql);
  return __real_sqlite3_prepare_v2(db, sql, len, out, tail);
}

int __real_sqlite3_prepare_v3(sqlite3 *, const char *, int, unsigned, sqlite3_stmt **, const char **);
int __wrap_sqlite3_prepare_v3(sqlite3 *db, const char *sql, int len, unsigned flags, sqlite3_stmt **out,
                              const char **tail) {
  BETWEEN(db, sql);
  return __real_sqlite3_prepare_v3(db, sql, len, flags, out, tail);
}

int __real_sqlite3_exec(sqlite3 *, const char *, sqlite3_callback, void *, char **);
int __wrap_sqlite3_exec(sqlite3 *db, const char *sql, sqlite3_callback callback, void *arg, char **error) {
  BETWEEN(db, sql);
  return __real_sqlite3_exec(db, sql, callback, arg, error);
}

int __real_sqlite3_close(sqlite3 *);
int __wrap_sqlite3_close(sqlite3 *db) {
  CLOSING(db);
  return __real_sqlite3_close(db);
}

int __real_sqlite3_close_v2(sqlite3 *);
int __wrap_sqlite3_close_v2(sqlite3 *db) {
  CLOSING(db);
  return __real_sqlite3_close_v2(db);
}
