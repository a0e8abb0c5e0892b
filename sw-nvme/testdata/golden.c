/* Writes the files of golden/: structures filled by field name with the headers of libnvme and SPDK, which know the
 * layouts independently of this project. tests/golden.rs decodes them with sw-nvme and compares field by field.
 * How to compile: README.md. The headers are not part of this tree.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "nvme/types.h"    /* linux-nvme/libnvme src/nvme/types.h */
#include "spdk/nvme_spec.h" /* spdk/spdk include/spdk/nvme_spec.h */

static const char *dir;

static void put(const char *name, const void *bytes, size_t len)
{
	char path[512];
	FILE *to;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	to = fopen(path, "wb");
	if (!to || fwrite(bytes, 1, len, to) != len || fclose(to))
		perror(path);
}

static FILE *lines;

static void line(const char *name, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	fprintf(lines, "%s ", name);
	for (size_t i = 0; i < len; i++)
		fprintf(lines, "%02x", at[i]);
	fputc('\n', lines);
}

static void fill(void *to, size_t len, uint8_t first)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = (uint8_t)(first + i);
}

static void padded(char *to, size_t len, const char *text)
{
	memset(to, ' ', len);
	memcpy(to, text, strlen(text));
}

static void controller(void)
{
	struct nvme_id_ctrl id;

	memset(&id, 0, sizeof(id));
	id.vid = 0x1b36;
	id.ssvid = 0x1af4;
	padded(id.sn, sizeof(id.sn), "SW-0001");
	padded(id.mn, sizeof(id.mn), "Straightway golden controller");
	padded(id.fr, sizeof(id.fr), "1.2.3");
	id.rab = 6;
	id.ieee[0] = 0x00;
	id.ieee[1] = 0x54;
	id.ieee[2] = 0x52;
	id.cmic = 2;
	id.mdts = 7;
	id.cntlid = 0x0102;
	id.ver = 0x00010400;
	id.rtd3r = 1111;
	id.rtd3e = 2500000;
	id.oaes = 0x300;
	id.ctratt = NVME_CTRL_CTRATT_128_ID | NVME_CTRL_CTRATT_ELBAS;
	id.cntrltype = 1;
	fill(id.fguid, sizeof(id.fguid), 0x40);
	id.crdt1 = 3;
	id.crdt2 = 50;
	id.crdt3 = 600;
	id.oacs = 0x10a;
	id.acl = 3;
	id.aerl = 7;
	id.frmw = 0x16;
	id.lpa = 0x06;
	id.elpe = 63;
	id.npss = 4;
	id.avscc = 1;
	id.apsta = 1;
	id.wctemp = 343;
	id.cctemp = 373;
	id.mtfa = 99;
	id.hmpre = 0x8000;
	id.hmmin = 0x2000;
	fill(id.tnvmcap, 8, 0x11);
	fill(id.unvmcap, 8, 0x21);
	id.rpmbs = 0x01020304;
	id.edstt = 5;
	id.kas = 100;
	id.hctma = 1;
	id.mntmt = 0x111;
	id.mxtmt = 0x222;
	id.sanicap = 0xe0000007;
	id.anacap = 0xff;
	id.sqes = 0x66;
	id.cqes = 0x44;
	id.maxcmd = 1024;
	id.nn = 256;
	id.oncs = 0x1df;
	id.fuses = 1;
	id.fna = 4;
	id.vwc = 7;
	id.awun = 0x1ff;
	id.awupf = 7;
	id.icsvscc = 1;
	id.acwu = 9;
	id.sgls = 0x00f40b02;
	id.mnan = 77;
	strcpy(id.subnqn, "nqn.2019-08.org.example:golden");
	id.ioccsz = 0xdeadbeef;
	put("identify-controller.bin", &id, sizeof(id));
}

static void controller_nvm(void)
{
	struct nvme_id_ctrl_nvm id;

	memset(&id, 0, sizeof(id));
	id.vsl = 5;
	id.wzsl = 6;
	id.wusl = 7;
	id.dmrl = 64;
	id.dmrsl = 0x00400000;
	id.dmsl = 0x0000000100000002;
	put("identify-controller-nvm.bin", &id, sizeof(id));
}

static void namespace(void)
{
	struct nvme_id_ns id;

	memset(&id, 0, sizeof(id));
	id.nsze = 0x0000000123456780;
	id.ncap = 0x0000000023456780;
	id.nuse = 0x0000000003456780;
	id.nsfeat = 0x17;
	id.nlbaf = 17;
	id.flbas = 0x20 | 0x10 | 0x01; /* format 17, extended */
	id.mc = 3;
	id.dpc = 0x1f;
	id.dps = 0x0a;
	id.nmic = 1;
	id.rescap = 0xff;
	id.fpi = 0x80 | 42;
	id.dlfeat = 0x09;
	id.nawun = 31;
	id.nawupf = 15;
	id.nacwu = 3;
	id.nabsn = 1;
	id.nabo = 2;
	id.nabspf = 3;
	id.noiob = 256;
	fill(id.nvmcap, 8, 0x31);
	id.npwg = 7;
	id.npwa = 3;
	id.npdg = 63;
	id.npda = 1;
	id.nows = 127;
	id.mssrl = 128;
	id.mcl = 0x200;
	id.msrc = 9;
	id.anagrpid = 5;
	id.nsattr = 1;
	id.nvmsetid = 2;
	id.endgid = 3;
	fill(id.nguid, sizeof(id.nguid), 0xa0);
	fill(id.eui64, sizeof(id.eui64), 0xc0);
	id.lbaf[0].ds = 9;
	id.lbaf[0].rp = 2;
	id.lbaf[1].ds = 12;
	id.lbaf[3].ds = 9;
	id.lbaf[3].ms = 64;
	id.lbaf[3].rp = 3;
	id.lbaf[17].ds = 12;
	id.lbaf[17].ms = 8;
	id.lbaf[17].rp = 1;
	put("identify-namespace.bin", &id, sizeof(id));
}

static void namespace_nvm(void)
{
	struct nvme_nvm_id_ns id;

	memset(&id, 0, sizeof(id));
	id.lbstm = 0xffff;
	id.pic = 7;
	id.elbaf[0] = 0;
	id.elbaf[1] = 16 | 0 << 7;
	id.elbaf[2] = 0 | 1 << 7;
	id.elbaf[63] = 48 | 2 << 7;
	put("identify-namespace-nvm.bin", &id, sizeof(id));
}

static uint8_t *descriptor(uint8_t *at, uint8_t nidt, uint8_t nidl, uint8_t first)
{
	struct nvme_ns_id_desc *to = (struct nvme_ns_id_desc *)at;

	to->nidt = nidt;
	to->nidl = nidl;
	fill(to->nid, nidl, first);
	return at + sizeof(*to) + nidl;
}

static void descriptors(void)
{
	uint8_t list[4096] = {0};
	uint8_t *at = list;

	at = descriptor(at, NVME_NIDT_NGUID, NVME_NIDT_NGUID_LEN, 0x50);
	at = descriptor(at, 0x77, 5, 0xee);
	at = descriptor(at, NVME_NIDT_EUI64, NVME_NIDT_EUI64_LEN, 0x60);
	at = descriptor(at, NVME_NIDT_UUID, NVME_NIDT_UUID_LEN, 0x70);
	descriptor(at, NVME_NIDT_CSI, NVME_NIDT_CSI_LEN, NVME_CSI_NVM);
	put("identify-descriptors.bin", list, sizeof(list));
}

static void logs(void)
{
	struct nvme_smart_log smart;
	struct nvme_error_log_page error;
	struct nvme_firmware_slot firmware;
	struct nvme_cmd_effects_log effects;

	memset(&smart, 0, sizeof(smart));
	smart.critical_warning = 0x09;
	smart.temperature[0] = 0x37;
	smart.temperature[1] = 0x01;
	smart.avail_spare = 98;
	smart.spare_thresh = 10;
	smart.percent_used = 103;
	fill(smart.data_units_read, 16, 0x01);
	fill(smart.data_units_written, 8, 0x02);
	fill(smart.host_reads, 8, 0x03);
	fill(smart.host_writes, 8, 0x04);
	fill(smart.ctrl_busy_time, 8, 0x05);
	fill(smart.power_cycles, 8, 0x06);
	fill(smart.power_on_hours, 8, 0x07);
	fill(smart.unsafe_shutdowns, 8, 0x08);
	fill(smart.media_errors, 8, 0x09);
	fill(smart.num_err_log_entries, 8, 0x0a);
	smart.warning_temp_time = 0x01020304;
	smart.critical_comp_time = 0x05060708;
	put("smart.bin", &smart, sizeof(smart));

	memset(&error, 0, sizeof(error));
	error.error_count = 0x0807060504030201;
	error.sqid = 3;
	error.cmdid = 0x0c41;
	error.status_field = (2 << 8 | 0x81) << 1 | 1; /* media, unrecovered read, phase */
	error.parm_error_location = 5 << 8 | 48;
	error.lba = 0x1f4000;
	error.nsid = 1;
	put("error-entry.bin", &error, sizeof(error));

	memset(&firmware, 0, sizeof(firmware));
	firmware.afi = 0x21;
	padded(firmware.frs[0], 8, "1.2.3");
	padded(firmware.frs[1], 8, "1.2.4");
	put("firmware.bin", &firmware, sizeof(firmware));

	memset(&effects, 0, sizeof(effects));
	effects.acs[0x06] = NVME_CMD_EFFECTS_CSUPP;
	effects.acs[0x80] = NVME_CMD_EFFECTS_CSUPP | NVME_CMD_EFFECTS_LBCC | NVME_CMD_EFFECTS_NCC;
	effects.iocs[0x01] = NVME_CMD_EFFECTS_CSUPP | NVME_CMD_EFFECTS_LBCC;
	effects.iocs[0x02] = NVME_CMD_EFFECTS_CSUPP;
	effects.iocs[0xff] = NVME_CMD_EFFECTS_NIC | NVME_CMD_EFFECTS_CCC;
	put("command-effects.bin", &effects, sizeof(effects));
}

#define SLBA 0x123456789abcdef0
#define COMMAND(name, code, ...) do { \
	struct spdk_nvme_cmd c; \
	memset(&c, 0, sizeof(c)); \
	c.opc = (code); \
	__VA_ARGS__; \
	line(name, &c, sizeof(c)); \
} while (0)

static void pages(struct spdk_nvme_cmd *c)
{
	c->dptr.prp.prp1 = 0x1122334455667788;
	c->dptr.prp.prp2 = 0x99aabbccddee0000;
}

static void range(struct spdk_nvme_cmd *c)
{
	c->cid = 0x0c41;
	c->nsid = 0x01020304;
	c->cdw10 = (uint32_t)SLBA;
	c->cdw11 = (uint32_t)(SLBA >> 32);
	c->cdw12_bits.write.nlb = 255;
}

static void commands(void)
{
	COMMAND("read", SPDK_NVME_OPC_READ, range(&c); pages(&c));
	COMMAND("read_flags", SPDK_NVME_OPC_READ, range(&c); pages(&c); c.cdw12_bits.write.fua = 1;
		c.cdw12_bits.write.lr = 1);
	COMMAND("read_protected", SPDK_NVME_OPC_READ, range(&c); pages(&c); c.cdw12_bits.write.pract = 1;
		c.cdw12 |= SPDK_NVME_IO_FLAGS_PRCHK_GUARD | SPDK_NVME_IO_FLAGS_PRCHK_REFTAG; c.cdw14 = (uint32_t)SLBA);
	COMMAND("read_sgl", SPDK_NVME_OPC_READ, range(&c); c.psdt = SPDK_NVME_PSDT_SGL_MPTR_CONTIG;
		c.dptr.sgl1.address = 0x1122334455667788;
		c.dptr.sgl1.unkeyed.length = 0x20000;
		c.dptr.sgl1.unkeyed.type = SPDK_NVME_SGL_TYPE_DATA_BLOCK);
	COMMAND("read_sgl_list", SPDK_NVME_OPC_READ, range(&c); c.psdt = SPDK_NVME_PSDT_SGL_MPTR_CONTIG;
		c.dptr.sgl1.address = 0x1122334455667000;
		c.dptr.sgl1.unkeyed.length = 32;
		c.dptr.sgl1.unkeyed.type = SPDK_NVME_SGL_TYPE_LAST_SEGMENT);
	COMMAND("write", SPDK_NVME_OPC_WRITE, range(&c); pages(&c); c.cdw12_bits.write.fua = 1);
	COMMAND("compare", SPDK_NVME_OPC_COMPARE, range(&c); pages(&c));
	COMMAND("write_zeroes", SPDK_NVME_OPC_WRITE_ZEROES, range(&c); c.cdw12_bits.write_zeroes.deac = 1);
	COMMAND("verify", SPDK_NVME_OPC_VERIFY, range(&c));
	COMMAND("write_uncorrectable", SPDK_NVME_OPC_WRITE_UNCORRECTABLE, range(&c));
	COMMAND("flush", SPDK_NVME_OPC_FLUSH, c.cid = 0x0c41; c.nsid = 0x01020304);
	COMMAND("deallocate", SPDK_NVME_OPC_DATASET_MANAGEMENT, c.nsid = 1; pages(&c); c.cdw10_bits.dsm.nr = 2;
		c.cdw11_bits.dsm.ad = 1);
	COMMAND("identify_controller", SPDK_NVME_OPC_IDENTIFY, pages(&c);
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_CTRLR);
	COMMAND("identify_namespace", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_NS);
	COMMAND("identify_active", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_ACTIVE_NS_LIST);
	COMMAND("identify_descriptors", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_NS_ID_DESCRIPTOR_LIST);
	COMMAND("identify_iocs_namespace", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_NS_IOCS; c.cdw11_bits.identify.csi = 2);
	COMMAND("identify_iocs_controller", SPDK_NVME_OPC_IDENTIFY, pages(&c);
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_CTRLR_IOCS; c.cdw11_bits.identify.csi = 2);
	COMMAND("identify_iocs_active", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_ACTIVE_NS_LIST_IOCS; c.cdw11_bits.identify.csi = 2);
	COMMAND("identify_ns_controllers", SPDK_NVME_OPC_IDENTIFY, pages(&c); c.nsid = 7;
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_NS_ATTACHED_CTRLR_LIST; c.cdw10_bits.identify.cntid = 9);
	COMMAND("identify_controllers", SPDK_NVME_OPC_IDENTIFY, pages(&c);
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_CTRLR_LIST; c.cdw10_bits.identify.cntid = 9);
	COMMAND("identify_iocs", SPDK_NVME_OPC_IDENTIFY, pages(&c);
		c.cdw10_bits.identify.cns = SPDK_NVME_IDENTIFY_IOCS; c.cdw10_bits.identify.cntid = 0xffff);
	COMMAND("create_cq", SPDK_NVME_OPC_CREATE_IO_CQ, c.dptr.prp.prp1 = 0x1122334455667000;
		c.cdw10_bits.create_io_q.qid = 3; c.cdw10_bits.create_io_q.qsize = 1023;
		c.cdw11_bits.create_io_cq.pc = 1; c.cdw11_bits.create_io_cq.ien = 1; c.cdw11_bits.create_io_cq.iv = 5);
	COMMAND("create_cq_polled", SPDK_NVME_OPC_CREATE_IO_CQ, c.dptr.prp.prp1 = 0x1122334455667000;
		c.cdw10_bits.create_io_q.qid = 3; c.cdw10_bits.create_io_q.qsize = 1023;
		c.cdw11_bits.create_io_cq.pc = 1);
	COMMAND("create_sq", SPDK_NVME_OPC_CREATE_IO_SQ, c.dptr.prp.prp1 = 0x1122334455667000;
		c.cdw10_bits.create_io_q.qid = 3; c.cdw10_bits.create_io_q.qsize = 255;
		c.cdw11_bits.create_io_sq.pc = 1; c.cdw11_bits.create_io_sq.cqid = 3);
	COMMAND("delete_sq", SPDK_NVME_OPC_DELETE_IO_SQ, c.cdw10_bits.delete_io_q.qid = 3);
	COMMAND("delete_cq", SPDK_NVME_OPC_DELETE_IO_CQ, c.cdw10_bits.delete_io_q.qid = 3);
	COMMAND("abort", SPDK_NVME_OPC_ABORT, c.cdw10_bits.abort.sqid = 3; c.cdw10_bits.abort.cid = 0x0c41);
	COMMAND("async_event", SPDK_NVME_OPC_ASYNC_EVENT_REQUEST, c.cid = 2);
	COMMAND("keep_alive", SPDK_NVME_OPC_KEEP_ALIVE, c.cid = 2);
	COMMAND("doorbell_buffers", SPDK_NVME_OPC_DOORBELL_BUFFER_CONFIG, pages(&c));
	COMMAND("get_log_smart", SPDK_NVME_OPC_GET_LOG_PAGE, pages(&c); c.nsid = SPDK_NVME_GLOBAL_NS_TAG;
		c.cdw10_bits.get_log_page.lid = SPDK_NVME_LOG_HEALTH_INFORMATION;
		c.cdw10_bits.get_log_page.rae = 1; c.cdw10_bits.get_log_page.numdl = 512 / 4 - 1);
	COMMAND("get_log_far", SPDK_NVME_OPC_GET_LOG_PAGE, pages(&c); c.nsid = SPDK_NVME_GLOBAL_NS_TAG;
		c.cdw10_bits.get_log_page.lid = SPDK_NVME_LOG_ERROR;
		c.cdw10_bits.get_log_page.numdl = 0x3456; c.cdw11_bits.get_log_page.numdu = 0x12;
		c.cdw12 = 0x89abcde0; c.cdw13 = 0x01234567);
	COMMAND("set_queues", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_NUMBER_OF_QUEUES;
		c.cdw11_bits.feat_num_of_queues.bits.nsqr = 7; c.cdw11_bits.feat_num_of_queues.bits.ncqr = 8);
	COMMAND("set_arbitration", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_ARBITRATION; c.cdw11_bits.feat_arbitration.bits.ab = 5);
	COMMAND("set_temperature", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_TEMPERATURE_THRESHOLD;
		c.cdw11_bits.feat_temp_threshold.bits.tmpth = 343);
	COMMAND("set_recovery", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_ERROR_RECOVERY;
		c.cdw11_bits.feat_error_recovery.bits.tler = 20; c.cdw11_bits.feat_error_recovery.bits.dulbe = 1);
	COMMAND("set_cache", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_VOLATILE_WRITE_CACHE;
		c.cdw11_bits.feat_volatile_write_cache.bits.wce = 1);
	COMMAND("set_coalescing", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_INTERRUPT_COALESCING;
		c.cdw11_bits.feat_interrupt_coalescing.bits.thr = 15;
		c.cdw11_bits.feat_interrupt_coalescing.bits.time = 2);
	COMMAND("set_vector", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_INTERRUPT_VECTOR_CONFIGURATION;
		c.cdw11_bits.feat_interrupt_vector_configuration.bits.iv = 5;
		c.cdw11_bits.feat_interrupt_vector_configuration.bits.cd = 1);
	COMMAND("set_events", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_ASYNC_EVENT_CONFIGURATION;
		c.cdw11_bits.feat_async_event_cfg.bits.ns_attr_notice = 1;
		c.cdw11_bits.feat_async_event_cfg.bits.fw_activation_notice = 1);
	COMMAND("set_keep_alive", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_KEEP_ALIVE_TIMER;
		c.cdw11_bits.feat_keep_alive_timer.bits.kato = 10000);
	COMMAND("set_host_id", SPDK_NVME_OPC_SET_FEATURES, pages(&c);
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_HOST_IDENTIFIER;
		c.cdw11_bits.feat_host_identifier.bits.exhid = 1);
	COMMAND("set_timestamp", SPDK_NVME_OPC_SET_FEATURES, pages(&c);
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_TIMESTAMP);
	COMMAND("set_behavior", SPDK_NVME_OPC_SET_FEATURES, pages(&c);
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_HOST_BEHAVIOR_SUPPORT);
	COMMAND("set_profile", SPDK_NVME_OPC_SET_FEATURES,
		c.cdw10_bits.set_features.fid = SPDK_NVME_FEAT_IO_COMMAND_SET_PROFILE; c.cdw11 = 3);
	COMMAND("get_queues", SPDK_NVME_OPC_GET_FEATURES,
		c.cdw10_bits.get_features.fid = SPDK_NVME_FEAT_NUMBER_OF_QUEUES;
		c.cdw10_bits.get_features.sel = 3);
}

static void registers(void)
{
	union spdk_nvme_cap_register cap = {0};
	union spdk_nvme_cc_register cc = {0};
	union spdk_nvme_csts_register csts = {0};
	union spdk_nvme_aqa_register aqa = {0};
	union spdk_nvme_cmbloc_register cmbloc = {0};
	union spdk_nvme_cmbsz_register cmbsz = {0};
	union spdk_nvme_cmbmsc_register cmbmsc = {0};
	union spdk_nvme_crto_register crto = {0};
	union spdk_nvme_pmrcap_register pmrcap = {0};
	struct spdk_nvme_cpl cpl = {0};
	struct spdk_nvme_dsm_range dsm = {0};

	cap.bits.mqes = 1023;
	cap.bits.cqr = 1;
	cap.bits.ams = 1;
	cap.bits.to = 40;
	cap.bits.dstrd = 2;
	cap.bits.nssrs = 1;
	cap.bits.css = SPDK_NVME_CAP_CSS_NVM | SPDK_NVME_CAP_CSS_IOCS;
	cap.bits.bps = 1;
	cap.bits.mpsmin = 1;
	cap.bits.mpsmax = 4;
	cap.bits.pmrs = 1;
	cap.bits.cmbs = 1;
	cap.bits.crwms = 1;
	line("cap", &cap, 8);
	cc.bits.en = 1;
	cc.bits.css = SPDK_NVME_CC_CSS_IOCS;
	cc.bits.mps = 2;
	cc.bits.shn = SPDK_NVME_SHN_NORMAL;
	cc.bits.iosqes = 6;
	cc.bits.iocqes = 4;
	line("cc", &cc, 4);
	csts.bits.rdy = 1;
	csts.bits.shst = SPDK_NVME_SHST_COMPLETE;
	csts.bits.nssro = 1;
	csts.bits.pp = 1;
	line("csts", &csts, 4);
	aqa.bits.asqs = 31;
	aqa.bits.acqs = 63;
	line("aqa", &aqa, 4);
	cmbloc.bits.bir = 4;
	cmbloc.bits.ofst = 0x12;
	line("cmbloc", &cmbloc, 4);
	cmbsz.bits.sqs = 1;
	cmbsz.bits.rds = 1;
	cmbsz.bits.szu = 2;
	cmbsz.bits.sz = 64;
	line("cmbsz", &cmbsz, 4);
	cmbmsc.bits.cre = 1;
	cmbmsc.bits.cmse = 1;
	cmbmsc.bits.cba = 0x123456789;
	line("cmbmsc", &cmbmsc, 8);
	crto.bits.crwmt = 120;
	crto.bits.crimt = 10;
	line("crto", &crto, 4);
	pmrcap.bits.rds = 1;
	pmrcap.bits.bir = 3;
	pmrcap.bits.pmrtu = 1;
	pmrcap.bits.pmrto = 2;
	pmrcap.bits.cmss = 1;
	line("pmrcap", &pmrcap, 4);
	cpl.cdw0 = 0x11223344;
	cpl.sqhd = 0x5566;
	cpl.sqid = 0x0003;
	cpl.cid = 0x0c41;
	cpl.status.p = 1;
	cpl.status.sct = SPDK_NVME_SCT_MEDIA_ERROR;
	cpl.status.sc = SPDK_NVME_SC_UNRECOVERED_READ_ERROR;
	cpl.status.crd = 2;
	cpl.status.dnr = 1;
	line("completion", &cpl, sizeof(cpl));
	dsm.starting_lba = SLBA;
	dsm.length = 0x01020304;
	line("dsm_range", &dsm, sizeof(dsm));
}

int main(int argc, char **argv)
{
	char path[512];

	dir = argc > 1 ? argv[1] : ".";
	controller();
	controller_nvm();
	namespace();
	namespace_nvm();
	descriptors();
	logs();
	snprintf(path, sizeof(path), "%s/../golden.hex", dir);
	lines = fopen(path, "w");
	if (!lines)
		return 1;
	commands();
	registers();
	return fclose(lines) != 0;
}
