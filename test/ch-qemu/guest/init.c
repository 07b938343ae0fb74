/* The init of the guests that the tests of ch-qemu boot: one static program, no shell.
 *
 * It mounts /dev, /proc and /sys, loads /mods/<name>.ko in name order when the kernel needs modules, prints "READY" on the console and listens on
 * vsock port 1024. A connection carries one line, then its data:
 *   ping                 -> "pong"
 *   echo                 -> every byte comes back; closed after the end of the input
 *   source N             -> N bytes of the pattern, then closed at once
 *   sink                 -> reads to the end of the input, then "N SUM" (bytes, 64-bit FNV-1a in hexadecimal)
 *   late                 -> reads to the end of the input, then answers "late"
 *   read PATH            -> the file's content
 *   list PATH            -> the names in a folder, one a line
 *   link PATH            -> where a symbolic link points
 *   write PATH TEXT      -> writes the text into the file
 *   touch N              -> allocates and writes N MiB, holds them until the connection closes
 *   half                 -> answers "ok", ends its half, reads on to the end of the input, and prints "HALF N" (bytes) on the console
 *   poweroff | reboot | panic | halt
 * The word test.at_boot=<one of the last four> on the kernel command line does that right after READY.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 512, BUFFER_BYTES = 65536, PORT = 1024 };
static unsigned char buffer[BUFFER_BYTES];

static int write_all(int fd, const void *data, size_t size)
{
	const char *at = data;
	while (size > 0) {
		ssize_t n = write(fd, at, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		at += n;
		size -= (size_t)n;
	}
	return 0;
}

static void put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_NOCTTY);
	if (fd >= 0) {
		(void)!write(fd, text, strlen(text));
		close(fd);
	}
}

/* The end of process 1 is the kernel's panic. */
static void die(int signal)
{
	_exit(signal);
}

static int end_machine(const char *word)
{
	if (strcmp(word, "poweroff") == 0)
		return reboot(RB_POWER_OFF);
	if (strcmp(word, "reboot") == 0)
		return reboot(RB_AUTOBOOT);
	if (strcmp(word, "halt") == 0)
		return reboot(RB_HALT_SYSTEM);
	if (strcmp(word, "panic") == 0)
		return kill(1, SIGUSR1);
	return -1;
}

/* Byte i of the pattern: cheap to make on both sides, and different in every 64 KiB block. */
static unsigned char pattern(uint64_t i)
{
	return (unsigned char)(i ^ (i >> 8) * 31 ^ (i >> 16) * 7);
}

static void source(int c, uint64_t size)
{
	for (uint64_t at = 0; at < size;) {
		size_t n = size - at < BUFFER_BYTES ? (size_t)(size - at) : BUFFER_BYTES;
		for (size_t i = 0; i < n; i++)
			buffer[i] = pattern(at + i);
		if (write_all(c, buffer, n) != 0)
			return;
		at += n;
	}
}

static void sink(int c)
{
	uint64_t total = 0, sum = 14695981039346656037ull;
	ssize_t n;
	while ((n = read(c, buffer, BUFFER_BYTES)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			sum = (sum ^ buffer[i]) * 1099511628211ull;
		total += (uint64_t)n;
	}
	dprintf(c, "%llu %016llx\n", (unsigned long long)total, (unsigned long long)sum);
}

static void echo(int c)
{
	ssize_t n;
	while ((n = read(c, buffer, BUFFER_BYTES)) > 0)
		if (write_all(c, buffer, (size_t)n) != 0)
			return;
}

static void half(int c)
{
	uint64_t total = 0;
	ssize_t n;
	char text[64];
	dprintf(c, "ok\n");
	shutdown(c, SHUT_WR);
	while ((n = read(c, buffer, BUFFER_BYTES)) > 0)
		total += (uint64_t)n;
	snprintf(text, sizeof text, "HALF %llu\n", (unsigned long long)total);
	put_file("/dev/console", text);
}

static void send_file(int c, const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t n;
	if (fd < 0) {
		dprintf(c, "error: %s: %s\n", path, strerror(errno));
		return;
	}
	while ((n = read(fd, buffer, BUFFER_BYTES)) > 0)
		if (write_all(c, buffer, (size_t)n) != 0)
			break;
	close(fd);
}

static void list(int c, const char *path)
{
	struct dirent **entries;
	int n = scandir(path, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++)
		if (entries[i]->d_name[0] != '.')
			dprintf(c, "%s\n", entries[i]->d_name);
}

static void touch(int c, size_t mib)
{
	char *memory = malloc(mib << 20);
	if (memory != NULL)
		memset(memory, 1, mib << 20);
	dprintf(c, "%s\n", memory != NULL ? "touched" : "no memory");
	(void)!read(c, buffer, 1);
}

static void serve(int c)
{
	char line[LINE_MAX_BYTES];
	size_t used = 0;
	while (used < sizeof line - 1 && read(c, line + used, 1) == 1 && line[used] != '\n')
		used++;
	line[used] = 0;
	char *argument = strchr(line, ' ');
	if (argument != NULL)
		*argument++ = 0;
	else
		argument = line + used;
	if (strcmp(line, "ping") == 0)
		dprintf(c, "pong\n");
	else if (strcmp(line, "echo") == 0)
		echo(c);
	else if (strcmp(line, "source") == 0)
		source(c, strtoull(argument, NULL, 10));
	else if (strcmp(line, "sink") == 0)
		sink(c);
	else if (strcmp(line, "late") == 0) {
		while (read(c, buffer, BUFFER_BYTES) > 0)
			;
		dprintf(c, "late\n");
	} else if (strcmp(line, "read") == 0)
		send_file(c, argument);
	else if (strcmp(line, "list") == 0)
		list(c, argument);
	else if (strcmp(line, "link") == 0) {
		ssize_t n = readlink(argument, (char *)buffer, BUFFER_BYTES);
		if (n > 0)
			write_all(c, buffer, (size_t)n);
	} else if (strcmp(line, "write") == 0) {
		char *text = strchr(argument, ' ');
		if (text != NULL) {
			*text++ = 0;
			put_file(argument, text);
		}
		dprintf(c, "ok\n");
	} else if (strcmp(line, "touch") == 0)
		touch(c, strtoull(argument, NULL, 10));
	else if (strcmp(line, "half") == 0)
		half(c);
	else {
		dprintf(c, "ok\n");
		shutdown(c, SHUT_WR);
		while (read(c, buffer, BUFFER_BYTES) > 0)
			;
		end_machine(line);
	}
}

static void load_modules(void)
{
	struct dirent **entries;
	int n = scandir("/mods", &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char path[512];
		snprintf(path, sizeof path, "/mods/%s", entries[i]->d_name);
		int fd = open(path, O_RDONLY);
		if (fd >= 0 && entries[i]->d_name[0] != '.')
			syscall(SYS_finit_module, fd, "", 0);
		close(fd);
	}
}

static int listener(void)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_port = PORT, .svm_cid = VMADDR_CID_ANY };
	int s = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (s >= 0 && bind(s, (void *)&address, sizeof address) == 0 && listen(s, 128) == 0)
		return s;
	close(s);
	return -1;
}

static void at_boot(void)
{
	static char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY);
	ssize_t n = read(fd, line, sizeof line - 1);
	close(fd);
	char *word = n > 0 ? strstr(line, "test.at_boot=") : NULL;
	if (word == NULL)
		return;
	word += strlen("test.at_boot=");
	word[strcspn(word, " \n")] = 0;
	end_machine(word);
}

int main(void)
{
	mkdir("/dev", 0755);
	mkdir("/proc", 0555);
	mkdir("/sys", 0555);
	mount("dev", "/dev", "devtmpfs", 0, "");
	mount("proc", "/proc", "proc", 0, "");
	mount("sys", "/sys", "sysfs", 0, "");
	int console = open("/dev/console", O_RDWR);
	for (int fd = 0; console >= 0 && fd < 3; fd++)
		dup2(console, fd);
	load_modules();
	int s = listener();
	put_file("/dev/console", s >= 0 ? "READY vsock\n" : "READY\n");
	at_boot();
	signal(SIGUSR1, die);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		/* A vsock device may be hot-plugged later: try again each second. */
		for (; s < 0; s = listener())
			sleep(1);
		int c = accept(s, NULL, NULL);
		if (c < 0)
			continue;
		if (fork() == 0) {
			close(s);
			serve(c);
			close(c);
			_exit(0);
		}
		close(c);
	}
}
