/* A file system without locks, as NFS and some FUSE ones are: preloaded, it makes every lock of a file fail. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/file.h>

static int refuse(void) { errno = ENOLCK; return -1; }

int flock(int fd, int operation) { return refuse(); }
int lockf(int fd, int command, off_t length) { return refuse(); }
