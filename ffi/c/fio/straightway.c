/*
 * SPDX-License-Identifier: MIT
 *
 * fio's external engine over libstraightway, so that job files run on it.
 *
 * It is compiled against the headers of the fio that loads it (a configured source tree of the same version):
 *
 *     cc -shared -fPIC -O2 -D_GNU_SOURCE -include FIO/config-host.h -I FIO straightway.c \
 *        $(pkg-config --cflags --libs straightway) -o straightway-fio.so
 *     fio --ioengine=external:./straightway-fio.so --iodepth=32 --rw=randread --bs=4k ...
 *
 * With memory=gpu0 the bytes move between the file and memory of that GPU; fio's own buffers are then neither filled nor looked at,
 * so verify= is refused.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <fio.h>
#include <optgroup.h>

#include <straightway.h>

/* Texts of options, as fio fills them. */
struct sw_options {
	void *pad; /* fio wants no option at offset 0 */
	char *settings;
	char *memory;
	char *policy;
};

/* One job. */
struct sw_job {
	sw_engine *engine;
	sw_region *region;
	char *base;           /* of fio's buffers, which the region has the length of */
	sw_request *staged;   /* queued and not begun */
	struct io_u **staged_for;
	unsigned staged_count;
	sw_op **ops;          /* in flight */
	struct io_u **op_for;
	unsigned op_count;
	struct io_u **events; /* over and not told */
	unsigned depth;
	sw_io_options io;
};

static struct fio_option options[] = {
	{
		.name = "settings",
		.lname = "Settings of the engine",
		.type = FIO_OPT_STR_STORE,
		.off1 = offsetof(struct sw_options, settings),
		.help = "Settings as of sw_engine_options, with commas between",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "memory",
		.lname = "Where the memory is",
		.type = FIO_OPT_STR_STORE,
		.off1 = offsetof(struct sw_options, memory),
		.help = "host (the default), gpu0, gpu1, ...",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{
		.name = "policy",
		.lname = "Routes that are accepted",
		.type = FIO_OPT_STR_STORE,
		.off1 = offsetof(struct sw_options, policy),
		.help = "any (the default), prefer=ROUTE, require=ROUTE, require-core=ROUTE",
		.category = FIO_OPT_C_ENGINE,
		.group = FIO_OPT_G_INVALID,
	},
	{ .name = NULL },
};

/* An errno for a status, with a line that says more. */
static int failed(const char *what, sw_status status) {
	sw_error error = SW_ERROR_INIT;
	sw_error_last(&error);
	log_err("straightway: %s: %s\n", what, error.message);
	return status == SW_ERR_BUSY ? EAGAIN : error.system_code > 0 ? error.system_code : EIO;
}

static bool is_host(const struct sw_options *from) { return !from->memory || !strcmp(from->memory, "host"); }

static void sw_cleanup(struct thread_data *td) {
	struct sw_job *job = td->io_ops_data;
	if (!job) return;
	if (job->engine) sw_engine_close(job->engine);
	free(job->staged);
	free(job->staged_for);
	free(job->ops);
	free(job->op_for);
	free(job->events);
	free(job);
	td->io_ops_data = NULL;
}

static int sw_init(struct thread_data *td) {
	struct sw_options *from = td->eo;
	sw_engine_options engine = SW_ENGINE_OPTIONS_INIT;
	struct sw_job *job = calloc(1, sizeof *job);
	sw_status status;
	if (!job) return ENOMEM;
	td->io_ops_data = job;
	/* VERIFY_NONE is 0; its header wants more of fio's own build. */
	if (!is_host(from) && td->o.verify != 0) {
		log_err("straightway: verify= needs memory=host\n");
		return EINVAL;
	}
	job->depth = td->o.iodepth;
	job->staged = calloc(job->depth, sizeof *job->staged);
	job->staged_for = calloc(job->depth, sizeof *job->staged_for);
	job->ops = calloc(job->depth, sizeof *job->ops);
	job->op_for = calloc(job->depth, sizeof *job->op_for);
	job->events = calloc(job->depth, sizeof *job->events);
	if (!job->staged || !job->staged_for || !job->ops || !job->op_for || !job->events) return ENOMEM;
	job->io = (sw_io_options)SW_IO_OPTIONS_INIT;
	job->io.policy = from->policy;
	engine.settings = from->settings;
	status = sw_engine_open(&engine, &job->engine);
	return status == SW_OK ? 0 : failed("engine", status);
}

/* fio's buffers, in one piece: the region itself, or beside it if it is a GPU's. */
static int sw_iomem_alloc(struct thread_data *td, size_t bytes) {
	struct sw_options *from = td->eo;
	struct sw_job *job = td->io_ops_data;
	sw_region_info info = SW_REGION_INFO_INIT;
	sw_status status = sw_region_allocate(job->engine, from->memory, bytes, 0, &job->region);
	if (status == SW_OK) status = sw_region_info_get(job->region, &info);
	if (status != SW_OK) return failed("memory", status);
	td->orig_buffer = is_host(from) ? info.address : aligned_alloc(page_size, (bytes + page_mask) & ~page_mask);
	job->base = td->orig_buffer;
	return td->orig_buffer ? 0 : ENOMEM;
}

static void sw_iomem_free(struct thread_data *td) {
	struct sw_job *job = td->io_ops_data;
	if (!is_host(td->eo)) free(td->orig_buffer);
	if (job && job->region) sw_region_release(job->region);
	td->orig_buffer = NULL;
}

static int sw_open_file(struct thread_data *td, struct fio_file *f) {
	struct sw_job *job = td->io_ops_data;
	sw_object_options how = SW_OBJECT_OPTIONS_INIT;
	sw_object *object = NULL;
	sw_status status;
	how.mode = td_write(td) ? SW_MODE_UPDATE : SW_MODE_READ;
	status = sw_object_open(job->engine, f->file_name, &how, &object);
	if (status != SW_OK) {
		td_verror(td, failed("open", status), "open");
		return 1;
	}
	FILE_SET_ENG_DATA(f, object);
	return 0;
}

static int sw_close_file(struct thread_data fio_unused *td, struct fio_file *f) {
	sw_object *object = FILE_ENG_DATA(f);
	FILE_SET_ENG_DATA(f, NULL);
	return object && sw_object_close(object) != SW_OK;
}

/* Drops the file from the page cache: fio has no descriptor of its own here. */
static int sw_invalidate(struct thread_data fio_unused *td, struct fio_file *f) {
	int error, fd = open(f->file_name, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return errno;
	error = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
	return error;
}

static sw_request request_of(struct sw_job *job, struct io_u *io_u) {
	sw_request request = SW_REQUEST_INIT;
	request.object = FILE_ENG_DATA(io_u->file);
	request.options = &job->io;
	if (ddir_sync(io_u->ddir)) {
		request.verb = SW_VERB_FLUSH;
		return request;
	}
	request.verb = io_u->ddir == DDIR_READ ? SW_VERB_READ : SW_VERB_WRITE;
	request.offset = io_u->offset;
	request.region = job->region;
	request.region_offset = (uint64_t)((char *)io_u->xfer_buf - job->base);
	request.length = io_u->xfer_buflen;
	return request;
}

static enum fio_q_status sw_queue(struct thread_data *td, struct io_u *io_u) {
	struct sw_job *job = td->io_ops_data;
	fio_ro_check(td, io_u);
	if (io_u->ddir == DDIR_TRIM) {
		io_u->error = EINVAL;
		return FIO_Q_COMPLETED;
	}
	if (job->staged_count + job->op_count == job->depth) return FIO_Q_BUSY;
	job->staged[job->staged_count] = request_of(job, io_u);
	job->staged_for[job->staged_count++] = io_u;
	return FIO_Q_QUEUED;
}

static int sw_commit(struct thread_data *td) {
	struct sw_job *job = td->io_ops_data;
	struct timespec now;
	sw_status status;
	if (!job->staged_count) return 0;
	status = sw_submit(job->staged, job->staged_count, job->ops + job->op_count);
	if (status != SW_OK) return -failed("submit", status);
	fio_gettime(&now, NULL);
	for (unsigned at = 0; at < job->staged_count; at++) {
		struct io_u *io_u = job->staged_for[at];
		memcpy(&io_u->issue_time, &now, sizeof now);
		io_u_queued(td, io_u);
		job->op_for[job->op_count + at] = io_u;
	}
	io_u_mark_submit(td, job->staged_count);
	job->op_count += job->staged_count;
	job->staged_count = 0;
	return 0;
}

/* Takes those that are over out of those in flight, up to `max`. */
static unsigned reap(struct sw_job *job, unsigned max) {
	unsigned over = 0, left = 0;
	for (unsigned at = 0; at < job->op_count; at++) {
		struct io_u *io_u = job->op_for[at];
		sw_completion done = SW_COMPLETION_INIT;
		if (over == max || sw_op_poll(job->ops[at], &done) == SW_PENDING) {
			job->ops[left] = job->ops[at];
			job->op_for[left++] = io_u;
			continue;
		}
		io_u->error = done.status == SW_OK ? 0 : (unsigned)failed("transfer", done.status);
		io_u->resid = done.status == SW_OK ? 0 : io_u->xfer_buflen;
		sw_op_free(job->ops[at]);
		job->events[over++] = io_u;
	}
	job->op_count = left;
	return over;
}

static int sw_getevents(struct thread_data *td, unsigned min, unsigned max, const struct timespec *t) {
	struct sw_job *job = td->io_ops_data;
	uint64_t timeout = t ? (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec : SW_FOREVER;
	size_t over = 0;
	if (!job->op_count) return 0;
	if (min > job->op_count) min = job->op_count;
	if (min && sw_op_wait_many(job->ops, job->op_count, min, timeout, &over) > SW_OK) {
		return -failed("wait", SW_ERR_IO);
	}
	return (int)reap(job, max);
}

static struct io_u *sw_event(struct thread_data *td, int event) {
	struct sw_job *job = td->io_ops_data;
	return job->events[event];
}

struct ioengine_ops ioengine = {
	.name = "straightway",
	.version = FIO_IOOPS_VERSION,
	.flags = FIO_RAWIO | FIO_ASYNCIO_SETS_ISSUE_TIME,
	.init = sw_init,
	.cleanup = sw_cleanup,
	.queue = sw_queue,
	.commit = sw_commit,
	.getevents = sw_getevents,
	.event = sw_event,
	.open_file = sw_open_file,
	.close_file = sw_close_file,
	.invalidate = sw_invalidate,
	.get_file_size = generic_get_file_size,
	.iomem_alloc = sw_iomem_alloc,
	.iomem_free = sw_iomem_free,
	.options = options,
	.option_struct_size = sizeof(struct sw_options),
};
