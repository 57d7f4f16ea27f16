"""Words that a full stop follows without ending a sentence, in a dozen languages. Data only, in lower case."""

from __future__ import annotations

# Never at the end of a sentence: something they belong to always follows.
OPEN = frozenset(
    """
    mr mrs ms messrs dr prof rev hon gov gen col capt lt sgt maj cmdr adm sen rep st mt ft vs cf viz resp approx incl
    excl e.g i.e eg ie al.s hr fr hrn dipl ing z.b d.h u.a o.ä i.d.r bzw ca vgl ggf evtl inkl zzgl sog mme mlle mm
    p.ex c.-à-d sra srta sres ud uds dña p.ej sig sigg dott avv cfr dra exmo dhr mevr mw bijv o.a d.w.z т.е т.к
    т.н см ср ул проф акад ред тел напр np tzn tj
    """.split()
)

# May end a sentence; does so when a word follows that usually begins one.
EITHER = frozenset(
    """
    etc al inc ltd co corp bros jr sr esq ph.d m.d b.a m.a a.m p.m u.s u.k u.n e.u d.c b.c a.d dept univ assn blvd
    rd usw u.s.w d.j ff f ecc s.a s.l n.v b.v gmbh ee.uu enz и.о т.д т.п др г гг в вв руб тыс млн млрд м.н
    """.split()
)

# The same, but only with a capital: without one they are words.
EITHER_WITH_CAPITAL = frozenset(
    """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun ave
    """.split()
)

# Stand before a number: no end of a sentence when a digit (or a Roman numeral) follows.
NUMBERED = frozenset(
    """
    no nos nr núm num art sec sect § fig figs tab eq eqs ch chap cap vol vols p pp pg pag pág s bd abs ed éd par
    рис стр гл табл п с ст т № bl
    """.split()
)

# Usual first words of a sentence, seen after an abbreviation or an initial that may end one.
STARTERS = frozenset(
    """
    the a an this that these those it its he she they we you i his her their our my in on at by for from with as if when
    while after before since but and or so yet however although there here what why how who where then thus also once
    not no one some many most both each every all another der die das ein eine er sie es wir ich und aber doch im le la
    les un une il elle ils nous je et mais el los las ella yo pero lo gli он она они мы я это и но в на
    """.split()
)

MONTHS = frozenset(
    """
    januar jänner februar märz april mai juni juli august september oktober november dezember
    leden únor března dubna května června července srpna září října listopadu prosince
    januar februar mars juni juli desember marraskuuta
    """.split()
)
