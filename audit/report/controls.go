package report

import "manis/audit"

// framework is a set of rules that somebody is audited by.
type framework struct {
	Name    string
	Clauses []clause
}

// clause is one of its rules, and what a bundle can contribute to it.
type clause struct {
	Number string
	// Subject is what it is about, in our words.
	Subject string
	// Needs are the checks without which the bundle says nothing about it.
	Needs []string
	// Supports is what the bundle shows then; NotShown is what the clause asks for besides.
	Supports, NotShown string
	// Supported is filled in for one bundle; Lacking is the check that it lacks.
	Supported bool
	Lacking   string
}

// log are the checks by which events are worth something.
var log = []string{audit.CheckOwner, audit.CheckEvidence, audit.CheckEvents, audit.CheckAttestation}

// wholeLog are those by which there are no others.
var wholeLog = append(log[:len(log):len(log)], audit.CheckEnd)

// machine are those by which the machine is what it should be.
var machine = []string{audit.CheckOwner, audit.CheckEvidence}

// frameworks are the clauses that a bundle can contribute to. Their numbers are those of PCI DSS v4.0.1 (June 2024), of
// Regulation (EU) 2022/2554 and Commission Delegated Regulation (EU) 2024/1774 (OJ L, 25.6.2024), and of GB/T 22239-2019 for
// the third level.
var frameworks = []framework{
	{"PCI DSS v4.0.1", []clause{
		{Number: "10.2.1.4", Subject: "audit logs capture all invalid logical access attempts", Needs: wholeLog,
			Supports: "every request of the host's that the manifest does not permit is refused, and written down or, in a flood, counted",
			NotShown: "access to the workload's own services, and to any other system"},
		{Number: "10.2.2", Subject: "what an entry of an audit log records", Needs: log,
			Supports: "each event has its kind, what it was about, and whether it was permitted or refused",
			NotShown: "the identity of a user (requests come from the host as one) and the time of day (the machine has no clock that could be trusted)"},
		{Number: "10.3.2", Subject: "audit log files are protected from modification by individuals", Needs: wholeLog,
			Supports: "this run's events are signed and chained, so that a modification, a removal or another order would have been found here",
			NotShown: "that nobody could delete the bundle as a whole, and the protection of any other log"},
		{Number: "10.3.4", Subject: "changes of existing log data are detected", Needs: wholeLog,
			Supports: "the verification that this report is of detects any change of this run's log",
			NotShown: "that an alert is raised, and that verification is done regularly"},
		{Number: "11.5.2", Subject: "unauthorised modification of critical files is detected", Needs: machine,
			Supports: "kernel, initial file system, command line and the root filesystems' hashes were those of the reference values and of the manifest when the machine booted and created its containers",
			NotShown: "comparison at least once a week, alerts, and files that a container writes at run time"},
	}},
	{"DORA, Regulation (EU) 2022/2554", []clause{
		{Number: "Article 9(3)(c)", Subject: "impairment of authenticity and integrity, and breaches of confidentiality, are prevented", Needs: log,
			Supports: "what ran was what its owner had signed, started by a machine that had measured itself; what differed was refused",
			NotShown: "availability; confidentiality from the administrator of the host where the hardware is none"},
		{Number: "Article 9(4)(c)", Subject: "access is limited to what legitimate and approved functions require", Needs: log,
			Supports: "the host could ask this machine for no more than the calls that the signed manifest lists",
			NotShown: "the policies, access rights and their administration in the financial entity"},
		{Number: "Article 9(4)(e)", Subject: "changes are recorded, approved, implemented and verified in a controlled manner", Needs: machine,
			Supports: "the version that ran is one that the holder of the owner's key has signed",
			NotShown: "the process by which the change was tested, assessed and approved before it was signed"},
	}},
	{"RTS on ICT risk management, Delegated Regulation (EU) 2024/1774", []clause{
		{Number: "Article 12(2)(c)(iv)", Subject: "events of ICT operations, including system activities, are logged", Needs: wholeLog,
			Supports: "attestation, release of secrets, creation, start, refusal and exit are in this run's log",
			NotShown: "the other kinds of events that the paragraph names, and retention"},
		{Number: "Article 12(2)(d)", Subject: "log information is protected against tampering, deletion and unauthorised access", Needs: wholeLog,
			Supports: "tampering with this run's log, and deletion of a part, would have been found here",
			NotShown: "unauthorised access to the log, and deletion of the whole"},
	}},
	{"MLPS 2.0, GB/T 22239-2019, level 3", []clause{
		{Number: "8.1.4.3", Subject: "security audit (安全审计): important events are recorded, records are protected from change, overwriting and deletion", Needs: wholeLog,
			Supports: "important events of this machine are recorded, and a change or a removal would have been found here",
			NotShown: "records for each user, with date and time; regular backup of the records"},
		{Number: "8.1.4.6", Subject: "trusted verification (可信验证): boot, system programs, configuration and applications are verified from a root of trust", Needs: machine,
			Supports: "kernel, initial file system, command line and manifest were measured, and the root filesystems verified by their hashes",
			NotShown: "a root of trust in hardware where the hardware is none; dynamic verification while applications run; an alarm to a management centre"},
		{Number: "8.1.4.7", Subject: "data integrity (数据完整性) of important audit data and configuration in storage and transmission", Needs: wholeLog,
			Supports: "audit data and manifest are signed, and this verification found them unchanged",
			NotShown: "the integrity of business data, and recovery of what was damaged"},
	}},
}

// controls says of each clause whether a bundle supports it.
func controls(r *audit.Report) []framework {
	var all []framework
	for _, f := range frameworks {
		mine := framework{Name: f.Name}
		for _, c := range f.Clauses {
			c.Supported = true
			for _, need := range c.Needs {
				if c.Supported && !r.Passed(need) {
					c.Supported, c.Lacking = false, need
				}
			}
			mine.Clauses = append(mine.Clauses, c)
		}
		all = append(all, mine)
	}
	return all
}
