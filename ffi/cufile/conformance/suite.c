/* SPDX-License-Identifier: Apache-2.0 */
/* Runs every case against one library, each in a process of its own with a limit, so that a crash or a hang is a result.
 *
 *   conformance --library PATH --scratch DIR [--memory host|device] [--jobs N] [--only PREFIX]
 *
 * Prints, with tabs between:  case NAME VERDICT SOURCE RULE ANSWERS COMPLAINTS end     verdict: PASS, FAIL or SKIP
 * Ends with 0 if every case was run, whatever came of it: judging is the caller's. */
#include "suite.h"

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* Seconds that a case may take: the slowest takes about two with the slowest library. */
#define LIMIT_MS 30000
#define JOBS_MAX 16
#define TEXT_MAX 3000

enum verdict { RUNNING, PASS, FAIL, SKIP };

/* Written by the child, read by the parent: what was said before a crash is kept. */
struct record {
    enum verdict verdict;
    char answers[TEXT_MAX];
    char complaints[TEXT_MAX];
};
static struct record *here;

static const char *scratch;
static const char *only = "";

static void append(char *text, const char *what, const char *format, va_list words) {
    size_t used = strlen(text);
    if (used + 8 >= TEXT_MAX) return;
    used += (size_t)snprintf(text + used, TEXT_MAX - used, "%s%s%s", used ? "; " : "", what, *what ? " " : "");
    if (used < TEXT_MAX) vsnprintf(text + used, TEXT_MAX - used, format, words);
}

void answer(const char *what, const char *format, ...) {
    va_list words;
    va_start(words, format);
    append(here->answers, what, format, words);
    va_end(words);
}

void complain(const char *format, ...) {
    va_list words;
    va_start(words, format);
    append(here->complaints, "", format, words);
    va_end(words);
}

void give_up(const char *format, ...) {
    va_list words;
    va_start(words, format);
    append(here->complaints, "", format, words);
    va_end(words);
    here->verdict = FAIL;
    _exit(0);
}

void skip(const char *format, ...) {
    va_list words;
    va_start(words, format);
    append(here->complaints, "", format, words);
    va_end(words);
    here->verdict = SKIP;
    _exit(0);
}

void is_error(const char *what, CUfileError_t got, int wanted) {
    answer(what, "%d", (int)got.err);
    if ((int)got.err != wanted) complain("%s: %d, wanted %d", what, (int)got.err, wanted);
}

void is_number(const char *what, long long got, long long wanted) {
    answer(what, "%lld", got);
    if (got != wanted) complain("%s: %lld, wanted %lld", what, got, wanted);
}

void is_true(const char *what, bool holds) {
    answer(what, "%s", holds ? "yes" : "no");
    if (!holds) complain("%s: no", what);
}

void is_refused(const char *what, CUfileError_t got) {
    answer(what, "%d", (int)got.err);
    if (got.err == CU_FILE_SUCCESS) complain("%s: accepted", what);
}

static const char *form(ssize_t got, int code) {
    static char text[64];
    if (got == -1) {
        snprintf(text, sizeof text, "-1 with errno %d", code);
    } else {
        snprintf(text, sizeof text, "%zd", got);
    }
    return text;
}

void is_bytes(const char *what, ssize_t got, int code, ssize_t wanted) {
    answer(what, "%s", form(got, code));
    if (got != wanted) complain("%s: %s, wanted %zd", what, form(got, code), wanted);
}

void is_refused_with(const char *what, ssize_t got, int code, int wanted) {
    answer(what, "%s", form(got, code));
    bool in_errno = got == -1 && code == wanted;
    if (got != -wanted && !in_errno) complain("%s: %s, wanted a refusal with %d", what, form(got, code), wanted);
}

void is_no_transfer(const char *what, ssize_t got, int code) {
    answer(what, "%s", form(got, code));
    if (got >= 0) complain("%s: %zd, wanted a refusal", what, got);
}

unsigned char byte_at(uint64_t at) { return (unsigned char)(at * 31 + at / 4093 + (at >> 20)); }

int file_new(const char *name, size_t length, int flags) {
    int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0) give_up("cannot make %s: %s", name, strerror(errno));
    unsigned char *bytes = malloc(length + 1);
    for (size_t at = 0; at < length; at++) bytes[at] = byte_at(at);
    for (size_t done = 0; done < length;) {
        ssize_t wrote = write(fd, bytes + done, length - done);
        if (wrote <= 0) give_up("cannot fill %s: %s", name, strerror(errno));
        done += (size_t)wrote;
    }
    free(bytes);
    close(fd);
    fd = open(name, flags);
    if (fd < 0) give_up("cannot open %s: %s", name, strerror(errno));
    return fd;
}

bool file_has(const char *name, uint64_t from, const unsigned char *bytes, size_t length) {
    int fd = open(name, O_RDONLY);
    unsigned char *got = malloc(length + 1);
    bool same = pread(fd, got, length, (off_t)from) == (ssize_t)length && memcmp(got, bytes, length) == 0;
    free(got);
    close(fd);
    return same;
}

uint64_t file_length(const char *name) {
    struct stat about;
    return stat(name, &about) ? 0 : (uint64_t)about.st_size;
}

CUfileError_t register_fd(CUfileHandle_t *handle, int fd) {
    CUfileDescr_t description;
    memset(&description, 0, sizeof description);
    description.type = CU_FILE_HANDLE_TYPE_OPAQUE_FD;
    description.handle.fd = fd;
    return cu.HandleRegister(handle, &description);
}

CUfileHandle_t handle_of(int fd) {
    CUfileHandle_t handle = NULL;
    CUfileError_t got = register_fd(&handle, fd);
    if (got.err) give_up("the file was refused: %d", (int)got.err);
    return handle;
}

CUfileHandle_t open_file(const char *name, size_t length, int flags) {
    return handle_of(file_new(name, length, O_RDWR | flags));
}

void must_open(void) {
    CUfileError_t got = cu.DriverOpen();
    if (got.err) give_up("the driver does not open: %d", (int)got.err);
}

uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *walk) {
    (void)about, (void)kind, (void)walk;
    return remove(path);
}

_Noreturn static void child(const struct test_case *one) {
    char dir[4096];
    setpgid(0, 0);
    snprintf(dir, sizeof dir, "%s/%s", scratch, one->name);
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (mkdir(dir, 0700) || chdir(dir)) give_up("cannot use %s: %s", dir, strerror(errno));
    /* What a library prints belongs to nobody's report. */
    if (!freopen("said.txt", "w", stderr) || !freopen("/dev/null", "w", stdout)) give_up("cannot redirect output");
    const char *reason = memory_ready();
    if (reason) skip("%s", reason);
    /* It costs ten times what the rest of an open does; a case that loads by itself is about what is there without it. */
    if (one->load == UNLOADED) unsetenv("CUFILE_SKIP_TOPOLOGY_DETECTION");
    if (one->load == LOADED && (reason = api_load()) != NULL) give_up("the library %s", reason);
    one->run();
    here->verdict = *here->complaints ? FAIL : PASS;
    _exit(0);
}

struct job {
    pid_t pid;
    uint64_t started;
    const struct test_case *one;
    struct record *record;
};

static void print(const struct job *job, const char *dead) {
    static const char *const words[] = {"FAIL", "PASS", "FAIL", "SKIP"};
    const struct record *record = job->record;
    const char *between = *record->complaints && *dead ? "; " : "";
    /* A process that a signal ended has failed, whatever it noted before. */
    printf("case\t%s\t%s\t%s\t%s\t%s\t%s%s%s\tend\n", job->one->name, *dead ? "FAIL" : words[record->verdict],
           job->one->source, job->one->rule, record->answers, record->complaints, between, dead);
    fflush(stdout);
}

/* Where the threads of a process that does not end are: in the kernel's words, as far as it tells them. */
static void where(pid_t pid, char *text, size_t room) {
    char path[64], words[512];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    size_t used = (size_t)snprintf(text, room, "hangs in");
    for (struct dirent *task; tasks && (task = readdir(tasks)) != NULL && used < room;) {
        if (task->d_name[0] == '.') continue;
        snprintf(words, sizeof words, "/proc/%d/task/%s/wchan", (int)pid, task->d_name);
        FILE *file = fopen(words, "r");
        size_t got = file ? fread(words, 1, sizeof words - 1, file) : 0;
        words[got] = 0;
        used += (size_t)snprintf(text + used, room - used, " %s", got > 1 ? words : "user code");
        if (file) fclose(file);
    }
    if (tasks) closedir(tasks);
}

/* Whether it has ended; then it is printed. */
static bool ended(struct job *job) {
    int status = 0;
    pid_t got = waitpid(job->pid, &status, WNOHANG);
    char dead[512] = "";
    if (got == 0) {
        if (now_ms() - job->started < LIMIT_MS) return false;
        where(job->pid, dead, sizeof dead);
        kill(-job->pid, SIGKILL);
        kill(job->pid, SIGKILL);
        waitpid(job->pid, &status, 0);
    } else if (WIFSIGNALED(status)) {
        snprintf(dead, sizeof dead, "killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else if (WEXITSTATUS(status)) {
        snprintf(dead, sizeof dead, "ended the process with status %d", WEXITSTATUS(status));
    }
    /* Whatever a case forked and left behind. */
    kill(-job->pid, SIGKILL);
    print(job, dead);
    munmap(job->record, sizeof *job->record);
    job->pid = 0;
    return true;
}

static void begin(struct job *job, const struct test_case *one) {
    job->one = one;
    job->record = mmap(NULL, sizeof *job->record, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (job->record == MAP_FAILED) exit(2);
    job->started = now_ms();
    job->pid = fork();
    if (job->pid < 0) exit(2);
    if (job->pid == 0) {
        here = job->record;
        child(one);
    }
}

static bool wanted(const struct test_case *one) {
    if (strncmp(one->name, only, strlen(only)) != 0) return false;
    return memory_kind == HOST ? one->kinds != DEVICE_ONLY : one->kinds != HOST_ONLY;
}

static void run_all(unsigned jobs_max) {
    struct job jobs[JOBS_MAX] = {{0}};
    struct table tables[] = {driver_cases(), handle_cases(), buffer_cases(),    read_cases(),   write_cases(), vector_cases(),
                             batch_cases(),  stream_cases(), parameter_cases(), config_cases(), stats_cases(), life_cases()};
    size_t table = 0, index = 0;
    const size_t tables_count = sizeof tables / sizeof tables[0];
    for (unsigned running = 1; running || table < tables_count;) {
        running = 0;
        for (unsigned slot = 0; slot < jobs_max; slot++) {
            if (jobs[slot].pid && !ended(&jobs[slot])) {
                running++;
                continue;
            }
            while (table < tables_count && (index >= tables[table].count || !wanted(&tables[table].cases[index]))) {
                if (index++ >= tables[table].count) table++, index = 0;
            }
            if (table < tables_count) {
                begin(&jobs[slot], &tables[table].cases[index++]);
                running++;
            }
        }
        usleep(2000);
    }
}

int main(int argc, char **argv) {
    unsigned jobs = 4;
    for (int at = 1; at + 1 < argc; at += 2) {
        const char *value = argv[at + 1];
        if (!strcmp(argv[at], "--library")) api_path = value;
        if (!strcmp(argv[at], "--scratch")) scratch = value;
        if (!strcmp(argv[at], "--only")) only = value;
        if (!strcmp(argv[at], "--jobs")) jobs = (unsigned)atoi(value);
        if (!strcmp(argv[at], "--memory")) memory_kind = strcmp(value, "device") ? HOST : DEVICE;
    }
    if (!api_path || !scratch || jobs < 1 || jobs > JOBS_MAX) {
        fprintf(stderr, "usage: conformance --library PATH --scratch DIR [--memory host|device] [--jobs 1-%d] [--only PREFIX]\n",
                JOBS_MAX);
        return 2;
    }
    run_all(jobs);
    return 0;
}
